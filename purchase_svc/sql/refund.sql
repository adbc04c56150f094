-- name: begin_refund
-- The conditional step, by the database's clock.
UPDATE purchases
SET state = 'REFUNDING', refund_pending = true, update_time = clock_timestamp(), refund_time = clock_timestamp()
WHERE purchase_id = %(purchase_id)s AND state = 'CONFIRMED' AND (%(user_id)s = '' OR user_id = %(user_id)s)
      AND final_time > clock_timestamp() - %(window_s)s::float8 * interval '1 second'
RETURNING purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
          share_numbers, attempts, cleanup_pending, create_time, update_time;

-- name: list_refunds
-- Whatever was touched least lately comes first: one that cannot be refunded never holds up the others.
SELECT purchase_id
FROM purchases
WHERE refund_pending
ORDER BY update_time
LIMIT %(limit)s;

-- name: finish_refunds
-- Only when the money has been booked back and the shares are nobody's.
UPDATE purchases
SET state = 'REFUNDED', refund_pending = false, share_numbers = '{}', update_time = clock_timestamp(),
    refunded_time = clock_timestamp()
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND refund_pending
    ORDER BY purchase_id
    FOR NO KEY UPDATE
)
RETURNING purchase_id;

-- name: postpone_refunds
UPDATE purchases
SET update_time = clock_timestamp()
WHERE purchase_id IN (
    SELECT purchase_id
    FROM purchases
    WHERE purchase_id = ANY(%(purchase_ids)s::uuid[]) AND refund_pending
    ORDER BY purchase_id
    FOR NO KEY UPDATE
);
