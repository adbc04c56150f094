-- The past, made at once: what many sales would have left behind. Ids begin as the sale's does, like real ones.

-- name: past_accounts
INSERT INTO accounts (user_id, currency_code, balance_minor)
SELECT 'past-' || n, 'EUR', 100 FROM generate_series(1, %(count)s) AS n

-- name: past_deposits
INSERT INTO ledger_entries (transfer_id, account, amount_minor, currency_code, kind, create_time)
SELECT 'past-' || n, account, sign * 100, 'EUR', 'DEPOSIT', now()
FROM generate_series(1, %(count)s) AS n,
     LATERAL (VALUES ('user:past-' || n, 1), ('cash:past', -1)) AS entry (account, sign)

-- name: past_purchases
INSERT INTO purchases
    (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, share_numbers,
     attempts, queue_time, claim_time, first_claim_time, final_time)
SELECT overlay(md5('past-' || n) placing left(%(sale_id)s::uuid::text, 8) from 1)::uuid, 'past-' || n, %(sale_id)s::uuid, 'past',
       1, %(price)s, 'EUR', n %% 16, 'CONFIRMED', ARRAY[n], 1, now(), now(), now(), now()
FROM generate_series(1, %(count)s) AS n

-- name: past_reservations
INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)
SELECT overlay(md5('past-' || n) placing left(%(sale_id)s::uuid::text, 8) from 1)::uuid, %(sale_id)s, 'past-' || n, 'past', 1, 'SOLD', 1
FROM generate_series(1, %(count)s) AS n

-- name: past_shares
INSERT INTO share_numbers (sale_id, share_number, total, reservation_id)
SELECT %(sale_id)s, n, %(count)s, overlay(md5('past-' || n) placing left(%(sale_id)s::uuid::text, 8) from 1)::uuid
FROM generate_series(1, %(count)s) AS n

-- name: past_sale
UPDATE sales SET state = 'CLOSED' WHERE sale_id = %(sale_id)s

-- name: past_holds
INSERT INTO holds
    (hold_id, user_id, currency_code, amount_minor, beneficiary, state, create_time, expire_time, end_time)
SELECT overlay(md5('past-' || n) placing left(%(sale_id)s::uuid::text, 8) from 1)::uuid, 'past-' || n, 'EUR', %(price)s,
       %(sale_id)s::uuid::text, 'CAPTURED', now(), now(), now()
FROM generate_series(1, %(count)s) AS n
