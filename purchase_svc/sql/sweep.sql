-- name: take_lease
-- One holder at a time; the holder renews it by taking it again.
INSERT INTO settlement_leases AS lease (lease_name, holder, expire_time)
VALUES (%(lease_name)s, %(holder)s, clock_timestamp() + %(ttl_s)s::float8 * interval '1 second')
ON CONFLICT (lease_name) DO UPDATE
    SET holder = EXCLUDED.holder, expire_time = EXCLUDED.expire_time
    WHERE lease.holder = EXCLUDED.holder OR lease.expire_time < clock_timestamp()
RETURNING true;

-- name: give_back_lease
DELETE FROM settlement_leases WHERE lease_name = %(lease_name)s AND holder = %(holder)s;

-- name: count_waiting
-- The oldest by itself: the index gives it at once.
SELECT count(*) FILTER (WHERE state <> 'PARKED'),
       COALESCE(GREATEST(0, EXTRACT(epoch FROM clock_timestamp() - (
           SELECT min(COALESCE(promote_time, create_time))
           FROM purchases
           WHERE final_time IS NULL AND NOT waitlisted AND state <> 'PARKED'
       ))), 0)::float8,
       count(*) FILTER (WHERE state = 'PARKED'),
       (SELECT count(*) FROM purchases WHERE refund_pending),
       COALESCE(GREATEST(0, EXTRACT(epoch FROM clock_timestamp() - (
           SELECT min(refund_time) FROM purchases WHERE refund_pending
       ))), 0)::float8
FROM purchases
WHERE final_time IS NULL AND NOT waitlisted;

-- name: note_busy
UPDATE settlement_partitions
SET busy_time = clock_timestamp()
WHERE partition = ANY(%(partitions)s::smallint[]);

-- name: list_unqueued
-- Purchases of which nobody knows that they were ever queued. now() and not clock_timestamp(), so that the index serves.
SELECT p.purchase_id, p.partition
FROM purchases p
WHERE p.final_time IS NULL AND NOT p.waitlisted
      AND COALESCE(p.promote_time, p.create_time) < now() - %(age_s)s::float8 * interval '1 second'
      AND p.state IN ('RESERVED', 'SETTLING') AND p.queue_time IS NULL AND p.claim_time IS NULL
      AND NOT EXISTS (SELECT 1 FROM queued_batches b WHERE b.batch_id = p.batch_id)
ORDER BY COALESCE(p.promote_time, p.create_time)
LIMIT %(limit)s;

-- name: list_silent_partitions
-- Partitions in which nothing was claimed and of which no worker had messages in hand for a while, and in which a
-- purchase shows no sign of life for as long.
SELECT s.partition
FROM settlement_partitions s
WHERE COALESCE(GREATEST(s.claim_time, s.busy_time), '-infinity') < now() - %(stale_s)s::float8 * interval '1 second'
      AND EXISTS (
          SELECT 1
          FROM purchases p
          LEFT JOIN queued_batches b USING (batch_id)
          WHERE p.final_time IS NULL AND NOT p.waitlisted
                AND COALESCE(p.promote_time, p.create_time) < now() - %(stale_s)s::float8 * interval '1 second'
                AND p.partition = s.partition AND p.state IN ('RESERVED', 'SETTLING')
                AND GREATEST(p.queue_time, b.queue_time, p.claim_time) < now() - %(stale_s)s::float8 * interval '1 second'
      )
ORDER BY s.partition;

-- name: list_lost
-- Purchases that are in no queue any more: overtaken by one that was queued well after their last sign of life, or in a
-- partition that is silent and whose queue is empty. Last sign of life: queued, or claimed.
SELECT p.purchase_id, p.partition
FROM purchases p
JOIN settlement_partitions s USING (partition)
LEFT JOIN queued_batches b USING (batch_id)
WHERE p.final_time IS NULL AND NOT p.waitlisted
      AND COALESCE(p.promote_time, p.create_time) < now() - %(stale_s)s::float8 * interval '1 second'
      AND p.state IN ('RESERVED', 'SETTLING')
      AND GREATEST(p.queue_time, b.queue_time, p.claim_time) < now() - %(stale_s)s::float8 * interval '1 second'
      AND (
          GREATEST(p.queue_time, b.queue_time, p.claim_time) < s.claimed_queue_time - %(stale_s)s::float8 * interval '1 second'
          OR p.partition = ANY(%(empty_partitions)s::smallint[])
      )
ORDER BY COALESCE(p.promote_time, p.create_time)
LIMIT %(limit)s;

-- name: list_cleanups
-- The age leaves the first try to the process that ended the purchase.
SELECT purchase_id
FROM purchases
WHERE cleanup_pending AND update_time < now() - %(age_s)s::float8 * interval '1 second'
ORDER BY update_time
LIMIT %(limit)s;

-- name: finish_cleanups
UPDATE purchases
SET cleanup_pending = false
WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND cleanup_pending;

-- name: postpone_cleanups
-- To the end of the line, so that one that cannot be cleaned up never holds up the others.
UPDATE purchases
SET update_time = clock_timestamp()
WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND cleanup_pending;

-- name: list_missing
SELECT given.purchase_id
FROM unnest(%(purchase_ids)s::uuid[]) AS given (purchase_id)
WHERE NOT EXISTS (SELECT 1 FROM purchases p WHERE p.purchase_id = given.purchase_id);

-- name: list_joined_without_purchase
-- Of those who joined the line, those of whom there is no purchase, and whether each joined so long ago that no buyer's
-- call can be about to record it.
SELECT given.purchase_id, given.join_time < clock_timestamp() - %(age_s)s::float8 * interval '1 second'
FROM unnest(%(purchase_ids)s::uuid[], %(join_times)s::timestamptz[]) AS given (purchase_id, join_time)
WHERE NOT EXISTS (SELECT 1 FROM purchases p WHERE p.purchase_id = given.purchase_id);

-- name: insert_abandoned
-- Takes the place of a purchase that was never recorded. If its buyer's insert comes first this inserts nothing, and
-- if it comes later it finds this row: either way there is one decision.
INSERT INTO purchases
    (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
     cleanup_pending, final_time)
SELECT new.*, 'FAILED', %(reason)s, true, clock_timestamp()
FROM unnest(
    %(purchase_ids)s::uuid[], %(user_ids)s::text[], %(sale_ids)s::uuid[], %(request_ids)s::text[],
    %(quantities)s::integer[], %(amounts_minor)s::bigint[], %(currency_codes)s::text[], %(partitions)s::smallint[]
) AS new (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition)
ORDER BY new.purchase_id
ON CONFLICT (purchase_id) DO NOTHING
RETURNING purchase_id;
