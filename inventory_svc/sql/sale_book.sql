-- name: insert_sale
WITH created AS (
    INSERT INTO sales (sale_id, request_id, display_name, unit_price_minor, currency_code, total, per_user_limit,
                       per_purchase_limit, state)
    VALUES (%(sale_id)s, %(request_id)s, %(display_name)s, %(unit_price_minor)s, %(currency_code)s, %(total)s,
            %(per_user_limit)s, %(per_purchase_limit)s, 'DRAFT')
    ON CONFLICT (request_id) DO NOTHING
    RETURNING sale_id, total
), fence AS (
    INSERT INTO sale_epochs (sale_id) SELECT sale_id FROM created
), lease AS (
    INSERT INTO calibration_leases (sale_id) SELECT sale_id FROM created
), line AS (
    INSERT INTO sale_lines (sale_id) SELECT sale_id FROM created
)
INSERT INTO share_pools (sale_id, total) SELECT sale_id, total FROM created

-- name: sale_by_request
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit, state,
       create_time
FROM sales WHERE request_id = %(request_id)s

-- name: sale_by_id
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit, state,
       create_time
FROM sales WHERE sale_id = %(sale_id)s

-- name: lock_sale
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit, state,
       create_time
FROM sales WHERE sale_id = %(sale_id)s
FOR NO KEY UPDATE

-- name: sales_page
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit, state,
       create_time
FROM sales
WHERE %(after_time)s::timestamptz IS NULL OR (create_time, sale_id) < (%(after_time)s, %(after_id)s::uuid)
ORDER BY create_time DESC, sale_id DESC
LIMIT %(size)s

-- name: set_state
UPDATE sales SET state = %(state)s WHERE sale_id = %(sale_id)s

-- name: bump_epoch
UPDATE sale_epochs SET epoch = epoch + 1 WHERE sale_id = %(sale_id)s RETURNING epoch

-- name: epochs_of
SELECT sale_id::text, epoch FROM sale_epochs WHERE sale_id = ANY(%(sale_ids)s::uuid[])

-- name: lock_lease
SELECT expire_time > clock_timestamp() FROM calibration_leases WHERE sale_id = %(sale_id)s FOR UPDATE

-- name: take_lease
UPDATE calibration_leases
SET epoch = %(epoch)s, expire_time = clock_timestamp() + %(lease_ms)s * interval '1 millisecond'
WHERE sale_id = %(sale_id)s

-- name: renew_lease
UPDATE calibration_leases
SET expire_time = clock_timestamp() + %(lease_ms)s * interval '1 millisecond'
WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s

-- name: end_lease
UPDATE calibration_leases SET expire_time = '-infinity' WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s

-- name: watched_sales
-- Every sale whose gate must be current: those not closed, and closed ones of which anything is still reserved or waits.
SELECT s.sale_id::text, e.epoch, l.expire_time > clock_timestamp() AS under_way
FROM sales s JOIN sale_epochs e USING (sale_id) JOIN calibration_leases l USING (sale_id)
WHERE s.state <> 'CLOSED'
   OR EXISTS (SELECT 1 FROM reservations r WHERE r.sale_id = s.sale_id AND r.state = 'RESERVED')
   OR EXISTS (SELECT 1 FROM sale_lines w WHERE w.sale_id = s.sale_id AND w.waiting > 0)

-- name: calibration_of
SELECT e.epoch, l.expire_time > clock_timestamp() AS under_way
FROM sale_epochs e JOIN calibration_leases l USING (sale_id)
WHERE e.sale_id = %(sale_id)s
