-- Read in one transaction that sees one moment (REPEATABLE READ, read only).

-- name: begin_check
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: allow_memory
-- Enough for the groups of some hundred thousand transfers; beyond it PostgreSQL goes on on disk.
SET LOCAL work_mem = '64MB'

-- name: check_totals
SELECT currency_code,
       coalesce(sum(entries), 0)::bigint, coalesce(sum(balances), 0)::bigint,
       coalesce(sum(customer_entries), 0)::bigint, coalesce(sum(held), 0)::bigint,
       coalesce(sum(open_holds), 0)::bigint
FROM (
    SELECT currency_code, sum(amount_minor) AS entries, NULL::numeric AS balances,
           sum(amount_minor) FILTER (WHERE starts_with(account, 'user:')) AS customer_entries,
           NULL::numeric AS held, NULL::numeric AS open_holds
    FROM ledger_entries GROUP BY currency_code
    UNION ALL
    SELECT currency_code, NULL, sum(balance_minor), NULL, sum(held_minor), NULL FROM accounts GROUP BY currency_code
    UNION ALL
    SELECT currency_code, NULL, NULL, NULL, NULL, sum(amount_minor)
    FROM holds WHERE state = 'HELD' GROUP BY currency_code
) AS part
GROUP BY currency_code
ORDER BY currency_code

-- name: check_accounts
-- Customers in the ledger or among the open holds who have no account are wrong too.
WITH booked AS (
    SELECT substr(account, 6) AS user_id, currency_code, sum(amount_minor) AS amount_minor
    FROM ledger_entries WHERE starts_with(account, 'user:') GROUP BY account, currency_code
), open_holds AS (
    SELECT user_id, currency_code, sum(amount_minor) AS amount_minor
    FROM holds WHERE state = 'HELD' GROUP BY user_id, currency_code
)
SELECT user_id, currency_code, coalesce(a.balance_minor, 0), coalesce(a.held_minor, 0)
FROM accounts AS a
FULL JOIN booked AS b USING (user_id, currency_code)
FULL JOIN open_holds AS o USING (user_id, currency_code)
WHERE a.balance_minor IS NULL
   OR a.held_minor < 0 OR a.held_minor > a.balance_minor
   OR a.held_minor <> coalesce(o.amount_minor, 0)
   OR a.balance_minor <> coalesce(b.amount_minor, 0)
ORDER BY user_id, currency_code
LIMIT %(rows_max)s

-- name: check_transfers
-- Every booking there should be, from the holds and transfers, against every booking there is: wrong is what has no
-- counterpart, or another one.
WITH booked AS (
    SELECT transfer_id, min(kind) AS kind, min(currency_code) AS currency_code,
           max(account) FILTER (WHERE amount_minor < 0) AS source,
           max(account) FILTER (WHERE amount_minor > 0) AS target,
           max(amount_minor) AS amount_minor,
           count(*) = 2 AND sum(amount_minor) = 0 AND min(kind) = max(kind)
               AND min(currency_code) = max(currency_code) AS whole
    FROM ledger_entries GROUP BY transfer_id
), expected AS (
    SELECT hold_id::text AS transfer_id, 'CAPTURE' AS kind, currency_code,
           'user:' || user_id AS source, 'sale:' || beneficiary AS target, amount_minor
    FROM holds WHERE state IN ('CAPTURED', 'REVERSED')
    UNION ALL
    SELECT 'reversal:' || hold_id::text, 'REVERSAL', currency_code,
           'sale:' || beneficiary, 'user:' || user_id, amount_minor
    FROM holds WHERE state = 'REVERSED'
    UNION ALL
    SELECT 'deposit:' || request_id, 'DEPOSIT', currency_code, 'world', 'user:' || user_id, amount_minor
    FROM transfers WHERE kind = 'DEPOSIT' AND refusal_reason IS NULL
    UNION ALL
    SELECT 'withdrawal:' || request_id, 'WITHDRAWAL', currency_code, 'user:' || user_id, 'world', amount_minor
    FROM transfers WHERE kind = 'WITHDRAWAL' AND refusal_reason IS NULL
)
SELECT transfer_id
FROM booked AS b
FULL JOIN expected AS e USING (transfer_id)
WHERE b.whole IS NOT TRUE
   OR (b.kind, b.currency_code, b.source, b.target, b.amount_minor)
      IS DISTINCT FROM (e.kind, e.currency_code, e.source, e.target, e.amount_minor)
ORDER BY transfer_id
LIMIT %(rows_max)s

-- name: check_pace
-- The second that begins at each decision is half open, [t, t + 1 s): times have whole microseconds.
SELECT coalesce(sum(holds), 0)::bigint, coalesce(max(within_a_second), 0)::bigint, min(create_time), max(create_time)
FROM (
    SELECT create_time, holds,
           sum(holds) OVER (
               ORDER BY create_time RANGE BETWEEN CURRENT ROW AND interval '999999 microseconds' FOLLOWING
           ) AS within_a_second
    FROM (
        SELECT create_time, count(*) AS holds FROM holds WHERE beneficiary = %(beneficiary)s GROUP BY create_time
    ) AS decided
) AS paced
