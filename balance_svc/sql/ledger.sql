-- name: insert_entries
INSERT INTO ledger_entries (transfer_id, account, amount_minor, currency_code, kind, create_time)
SELECT transfer_id, account, amount_minor, currency_code, kind, %(create_time)s::timestamptz
FROM unnest(%(transfer_ids)s::text[], %(accounts)s::text[], %(amounts)s::bigint[], %(currency_codes)s::text[],
            %(kinds)s::text[])
    AS new (transfer_id, account, amount_minor, currency_code, kind)

-- name: list_entries
SELECT entry_id, transfer_id, account, amount_minor, currency_code, kind, create_time
FROM ledger_entries
WHERE entry_id > %(after_entry_id)s
ORDER BY entry_id
LIMIT %(rows_max)s

-- name: list_entries_of_account
SELECT entry_id, transfer_id, account, amount_minor, currency_code, kind, create_time
FROM ledger_entries
WHERE account = %(account)s AND entry_id > %(after_entry_id)s
ORDER BY entry_id
LIMIT %(rows_max)s

-- name: read_transfers
SELECT request_id, kind, user_id, currency_code, amount_minor, refusal_reason
FROM transfers
WHERE request_id = ANY(%(request_ids)s::text[])

-- name: insert_transfers
-- In id order, so that two batches with the same new ids wait for each other and never deadlock.
INSERT INTO transfers (request_id, kind, user_id, currency_code, amount_minor, refusal_reason, create_time)
SELECT request_id, kind, user_id, currency_code, amount_minor, refusal_reason, %(create_time)s::timestamptz
FROM unnest(%(request_ids)s::text[], %(kinds)s::text[], %(user_ids)s::text[], %(currency_codes)s::text[],
            %(amounts)s::bigint[], %(refusal_reasons)s::text[])
    AS new (request_id, kind, user_id, currency_code, amount_minor, refusal_reason)
ORDER BY request_id COLLATE "C"
