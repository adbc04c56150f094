-- name: create_accounts
-- In key order, so that two batches with the same new accounts wait for each other and never deadlock.
INSERT INTO accounts (user_id, currency_code)
SELECT user_id, currency_code
FROM unnest(%(user_ids)s::text[], %(currency_codes)s::text[]) AS asked (user_id, currency_code)
ORDER BY user_id COLLATE "C", currency_code COLLATE "C"
ON CONFLICT (user_id, currency_code) DO NOTHING

-- name: read_accounts
SELECT a.user_id, a.currency_code, a.balance_minor, a.held_minor
FROM accounts AS a
JOIN unnest(%(user_ids)s::text[], %(currency_codes)s::text[]) AS asked (user_id, currency_code)
    ON a.user_id = asked.user_id AND a.currency_code = asked.currency_code

-- name: lock_accounts
-- The keys must be distinct. Rows are locked in the order of the sort: every writer takes them in this order.
SELECT a.user_id, a.currency_code, a.balance_minor, a.held_minor
FROM accounts AS a
JOIN unnest(%(user_ids)s::text[], %(currency_codes)s::text[]) AS asked (user_id, currency_code)
    ON a.user_id = asked.user_id AND a.currency_code = asked.currency_code
ORDER BY a.user_id, a.currency_code
FOR UPDATE OF a

-- name: update_accounts
UPDATE accounts AS a
SET balance_minor = new.balance_minor, held_minor = new.held_minor
FROM unnest(%(user_ids)s::text[], %(currency_codes)s::text[], %(balances)s::bigint[], %(helds)s::bigint[])
    AS new (user_id, currency_code, balance_minor, held_minor)
WHERE a.user_id = new.user_id AND a.currency_code = new.currency_code

-- name: list_accounts
SELECT user_id, currency_code, balance_minor, held_minor
FROM accounts
WHERE (user_id, currency_code) > (%(after_user_id)s::text, %(after_currency_code)s::text)
ORDER BY user_id, currency_code
LIMIT %(rows_max)s

-- name: read_clock
SELECT clock_timestamp()
