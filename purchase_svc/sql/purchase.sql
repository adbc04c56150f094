-- name: insert_purchases
-- Rows go in by id, so that two batches which share ids cannot deadlock. What is there already is left as it is and not
-- returned. Those that wait in line are of no batch: they are not queued with it.
INSERT INTO purchases
    (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, waitlisted, state,
     create_time, update_time, batch_id, waitlist_time)
SELECT new.*, CASE WHEN waitlisted THEN 'WAITLISTED' ELSE 'RESERVED' END, moment, moment,
       CASE WHEN waitlisted THEN 0 ELSE batch_id END, CASE WHEN waitlisted THEN moment END
FROM clock_timestamp() AS moment, nextval('purchase_batches') AS batch_id, unnest(
    %(purchase_ids)s::uuid[], %(user_ids)s::text[], %(sale_ids)s::uuid[], %(request_ids)s::text[],
    %(quantities)s::integer[], %(amounts_minor)s::bigint[], %(currency_codes)s::text[], %(partitions)s::smallint[],
    %(waitlisted)s::boolean[]
) AS new (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, waitlisted)
ORDER BY new.purchase_id
ON CONFLICT (purchase_id) DO NOTHING
RETURNING purchase_id::text, create_time, batch_id;

-- name: get_purchases
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM purchases
WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]);

-- name: get_changed_purchases
-- Of the purchases watched, those whose state is no longer the one last seen.
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, p.state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM unnest(%(purchase_ids)s::uuid[], %(states)s::text[]) AS watched (watched_id, seen_state)
JOIN purchases p ON p.purchase_id = watched.watched_id
WHERE p.state <> watched.seen_state;

-- name: list_purchases
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM purchases
WHERE purchase_id > %(after)s AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY purchase_id
LIMIT %(limit)s;

-- name: list_purchases_of_sale
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM purchases
WHERE sale_id = %(sale_id)s AND purchase_id > %(after)s AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY purchase_id
LIMIT %(limit)s;

-- name: list_purchases_of_user
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time
FROM purchases
WHERE user_id = %(user_id)s AND purchase_id > %(after)s AND (%(state)s::text IS NULL OR state = %(state)s)
      AND (%(sale_id)s::uuid IS NULL OR sale_id = %(sale_id)s)
ORDER BY purchase_id
LIMIT %(limit)s;

-- name: cancel_purchase
-- The conditional step: a worker that claims the purchase at the same time either finds it gone or makes this find
-- nothing. So does whoever takes in that it has been promoted.
UPDATE purchases
SET state = 'CANCELLED', waitlisted = false, cleanup_pending = true, update_time = clock_timestamp(),
    final_time = clock_timestamp()
WHERE purchase_id = %(purchase_id)s AND state IN ('WAITLISTED', 'RESERVED')
      AND (%(user_id)s = '' OR user_id = %(user_id)s)
RETURNING purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
          share_numbers, attempts, cleanup_pending, create_time, update_time;

-- name: finish_cancel_cleanup
UPDATE purchases
SET cleanup_pending = false
WHERE purchase_id = %(purchase_id)s AND state = 'CANCELLED' AND cleanup_pending;

-- name: mark_queued
-- Notes that the broker has confirmed these. A row that is locked is being claimed or cancelled at this moment and needs
-- no note; waiting for it could deadlock with a claim that takes its rows in another order.
UPDATE purchases
SET queue_time = clock_timestamp()
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND queue_time IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
);

-- name: mark_batches_queued
-- Notes that the broker has confirmed every purchase of these batches.
INSERT INTO queued_batches (batch_id, queue_time)
SELECT batch_id, clock_timestamp() FROM unnest(%(batch_ids)s::bigint[]) AS batch_id
ON CONFLICT (batch_id) DO NOTHING;

-- name: summarize_sale
SELECT state, reason, count(*), sum(quantity)::bigint, sum(amount_minor)::bigint, min(first_claim_time),
       max(final_time), min(COALESCE(promote_time, create_time))
FROM purchases
WHERE sale_id = %(sale_id)s
GROUP BY state, reason
ORDER BY state, reason;
