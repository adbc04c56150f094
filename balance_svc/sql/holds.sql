-- name: read_hold_accounts
-- Whose a hold is never changes, so it is read without a lock.
SELECT hold_id::text, user_id, currency_code FROM holds WHERE hold_id = ANY(%(hold_ids)s::uuid[])

-- name: read_holds
SELECT hold_id::text, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason,
       create_time, expire_time, end_time
FROM holds AS h
WHERE h.hold_id = ANY(%(hold_ids)s::uuid[])

-- name: lock_holds
SELECT hold_id::text, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason,
       create_time, expire_time, end_time
FROM holds AS h
WHERE h.hold_id = ANY(%(hold_ids)s::uuid[])
ORDER BY h.hold_id
FOR UPDATE

-- name: insert_holds
-- In id order, so that two batches with the same new ids wait for each other and never deadlock.
INSERT INTO holds (hold_id, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason,
                   create_time, expire_time, end_time)
SELECT hold_id, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason,
       %(now)s::timestamptz,
       CASE WHEN state = 'HELD' THEN %(expire_time)s::timestamptz END,
       CASE WHEN state <> 'HELD' THEN %(now)s::timestamptz END
FROM unnest(%(hold_ids)s::uuid[], %(user_ids)s::text[], %(currency_codes)s::text[], %(amounts)s::bigint[],
            %(beneficiaries)s::text[], %(states)s::text[], %(refusal_reasons)s::text[])
    AS new (hold_id, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason)
ORDER BY hold_id

-- name: update_holds
-- Conditional on the state the decision was made from; the caller requires that every row was changed. The end time is
-- when a hold left HELD, and stays.
UPDATE holds AS h
SET state = new.state, end_time = coalesce(h.end_time, %(now)s::timestamptz)
FROM unnest(%(hold_ids)s::uuid[], %(states_before)s::text[], %(states)s::text[]) AS new (hold_id, state_before, state)
WHERE h.hold_id = new.hold_id AND h.state = new.state_before

-- name: read_overdue_holds
SELECT hold_id::text, user_id, currency_code
FROM holds
WHERE state = 'HELD' AND expire_time <= clock_timestamp()
ORDER BY expire_time
LIMIT %(rows_max)s

-- name: list_holds
SELECT hold_id::text, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason,
       create_time, expire_time, end_time
FROM holds AS h
WHERE (%(after_hold_id)s::uuid IS NULL OR h.hold_id > %(after_hold_id)s::uuid)
  AND (%(beneficiary)s::text = '' OR h.beneficiary = %(beneficiary)s::text)
  AND (%(state)s::text = '' OR h.state = %(state)s::text)
ORDER BY h.hold_id
LIMIT %(rows_max)s
