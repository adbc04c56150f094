-- name: end_waiting
-- What has become of purchases that waited in line, as the Inventory Service decided it: WAITLISTED to RESERVED,
-- CANCELLED or FAILED. One that is WAITLISTED no more was cancelled, or has been taken in before, and is left as it is.
-- A promoted one is not known to be queued. Nothing is to be cleaned up of the others: they never had a unit.
WITH told AS (
    SELECT *
    FROM unnest(%(purchase_ids)s::uuid[], %(states)s::text[], %(reasons)s::integer[])
         AS given (purchase_id, state, reason)
), locked AS (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND waitlisted
    ORDER BY purchase_id
    FOR NO KEY UPDATE
)
UPDATE purchases p
SET state = told.state,
    reason = told.reason,
    waitlisted = false,
    update_time = clock_timestamp(),
    promote_time = CASE WHEN told.state = 'RESERVED' THEN clock_timestamp() END,
    final_time = CASE WHEN told.state = 'RESERVED' THEN NULL ELSE clock_timestamp() END
FROM told JOIN locked USING (purchase_id)
WHERE p.purchase_id = told.purchase_id
RETURNING p.purchase_id, p.partition, p.state;
