-- name: take_tokens
-- GCRA: the time at which the bucket is full again moves on by the tokens; they are due as soon as that time is no more
-- than a full bucket ahead of the clock. The clock is read again when the row was locked and has changed meanwhile.
UPDATE settlement_pace
SET theoretical_arrival_time =
        LEAST(
            GREATEST(theoretical_arrival_time, clock_timestamp()),
            clock_timestamp() + %(ahead_max_s)s::float8 * interval '1 second'
        ) + %(tokens)s::float8 / %(rate_per_s)s::float8 * interval '1 second'
RETURNING extract(
    epoch FROM theoretical_arrival_time
               - %(capacity)s::float8 / %(rate_per_s)s::float8 * interval '1 second'
               - clock_timestamp()
)::float8;

-- name: claim_purchases
-- Claims in order of id, so that two workers with the same purchases cannot deadlock. Whoever claims has seen it in the
-- queue, whether or not the publisher has come to note that.
WITH due AS (
    SELECT p.purchase_id, b.queue_time AS batch_queue_time
    FROM purchases p
    LEFT JOIN queued_batches b USING (batch_id)
    WHERE p.purchase_id = ANY(%(purchase_ids)s::uuid[]) AND p.state IN ('RESERVED', 'SETTLING')
    ORDER BY p.purchase_id
    FOR NO KEY UPDATE OF p
), claimed AS (
    UPDATE purchases p
    SET state = 'SETTLING',
        attempts = p.attempts + 1,
        update_time = clock_timestamp(),
        claim_time = clock_timestamp(),
        first_claim_time = COALESCE(p.first_claim_time, clock_timestamp()),
        queue_time = COALESCE(p.queue_time, due.batch_queue_time, clock_timestamp())
    FROM due
    WHERE p.purchase_id = due.purchase_id
    RETURNING p.purchase_id, p.user_id, p.sale_id, p.quantity, p.amount_minor, p.currency_code, p.partition, p.attempts,
              p.queue_time
), progress AS (
    UPDATE settlement_partitions s
    SET claim_time = clock_timestamp(), claimed_queue_time = GREATEST(s.claimed_queue_time, newest.queue_time)
    FROM (SELECT partition, max(queue_time) AS queue_time FROM claimed GROUP BY partition) newest
    WHERE s.partition = newest.partition
)
SELECT purchase_id, user_id, sale_id, quantity, amount_minor, currency_code, partition, attempts
FROM claimed;

-- name: finish_purchases
-- SETTLING to CONFIRMED, FAILED or PARKED. One that another worker has finished is left as it is: both were told the
-- same by the owners of the decision.
WITH ending AS (
    SELECT *
    FROM unnest(
        %(purchase_ids)s::uuid[], %(states)s::text[], %(reasons)s::integer[], %(share_numbers)s::text[]
    ) AS given (purchase_id, state, reason, share_numbers)
), locked AS (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND state = 'SETTLING'
    ORDER BY purchase_id
    FOR NO KEY UPDATE
)
UPDATE purchases p
SET state = ending.state,
    reason = ending.reason,
    share_numbers = ending.share_numbers::integer[],
    update_time = clock_timestamp(),
    final_time = CASE WHEN ending.state = 'PARKED' THEN NULL ELSE clock_timestamp() END,
    park_time = CASE WHEN ending.state = 'PARKED' THEN clock_timestamp() ELSE p.park_time END
FROM ending JOIN locked USING (purchase_id)
WHERE p.purchase_id = ending.purchase_id;

-- name: mark_requeued
-- Notes when the message that carries these reaches its partition. What is locked is being claimed and needs no note.
UPDATE purchases
SET queue_time = clock_timestamp() + %(delay_s)s::float8 * interval '1 second'
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND state IN ('RESERVED', 'SETTLING')
    FOR NO KEY UPDATE SKIP LOCKED
);
