-- name: count_parked
SELECT count(*) FROM purchases WHERE final_time IS NULL AND NOT waitlisted AND state = 'PARKED';

-- name: list_parked
-- The first two conditions let the index of unsettled purchases serve.
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM purchases
WHERE final_time IS NULL AND NOT waitlisted AND state = 'PARKED'
ORDER BY COALESCE(promote_time, create_time), purchase_id
LIMIT %(limit)s;

-- name: replay_parked
-- PARKED to SETTLING, where it can be claimed again but not cancelled: a worker may have captured its money. Not known to
-- be queued, so that the sweeper queues it should whoever replays it break off before doing so.
UPDATE purchases
SET state = 'SETTLING', reason = 0, attempts = 0, queue_time = NULL, claim_time = NULL, update_time = clock_timestamp()
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND state = 'PARKED'
    ORDER BY purchase_id
    FOR NO KEY UPDATE
)
RETURNING purchase_id, partition;

-- name: fail_parked
-- Only when nothing of it is held or set aside any more. One that was replayed meanwhile is left to the worker.
UPDATE purchases
SET state = 'FAILED', reason = %(reason)s, update_time = clock_timestamp(), final_time = clock_timestamp()
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND state = 'PARKED'
    ORDER BY purchase_id
    FOR NO KEY UPDATE
)
RETURNING purchase_id;
