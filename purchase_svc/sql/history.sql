-- What is told about purchases when it is all over: receipts and statements.

-- name: get_history
SELECT purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, state, reason,
       share_numbers, attempts, cleanup_pending, create_time, update_time,
       waitlist_time, promote_time, first_claim_time, park_time, final_time, refund_time, refunded_time
FROM purchases
WHERE purchase_id = %(purchase_id)s AND (%(user_id)s = '' OR user_id = %(user_id)s);

-- name: list_non_wins
SELECT purchase_id, user_id, quantity, state, reason, COALESCE(refunded_time, final_time)
FROM purchases
WHERE sale_id = %(sale_id)s AND purchase_id > %(after)s AND state IN ('FAILED', 'CANCELLED', 'REFUNDED')
ORDER BY purchase_id
LIMIT %(limit)s;
