-- name: insert_sale
-- What can change later is kept twice: as it is now, and as it was asked for, by which a repetition is known.
WITH created AS (
    INSERT INTO sales (sale_id, request_id, display_name, unit_price_minor, currency_code, total, per_user_limit,
                       per_purchase_limit, eligible_users_only, overtaking_allowed, state, state_actor,
                       open_time, close_time, created_total, created_open_time, created_close_time)
    VALUES (%(sale_id)s, %(request_id)s, %(display_name)s, %(unit_price_minor)s, %(currency_code)s, %(total)s,
            %(per_user_limit)s, %(per_purchase_limit)s, %(eligible_users_only)s, %(overtaking_allowed)s, %(state)s,
            %(actor)s, %(open_time)s, %(close_time)s, %(total)s, %(open_time)s, %(close_time)s)
    ON CONFLICT (request_id) DO NOTHING
    RETURNING sale_id, total, state, state_time, state_actor
), fence AS (
    INSERT INTO sale_epochs (sale_id) SELECT sale_id FROM created
), lease AS (
    INSERT INTO calibration_leases (sale_id) SELECT sale_id FROM created
), totals AS (
    INSERT INTO sale_totals (sale_id, total) SELECT sale_id, total FROM created
), change AS (
    INSERT INTO sale_changes (sale_id, change_time, actor, to_state, total)
    SELECT sale_id, state_time, state_actor, state, total FROM created
), line AS (
    INSERT INTO sale_lines (sale_id) SELECT sale_id FROM created
)
INSERT INTO share_pools (sale_id, total) SELECT sale_id, total FROM created

-- name: sale_by_request
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit,
       eligible_users_only, overtaking_allowed, state, create_time, open_time, close_time, state_time, state_actor,
       coalesce(created_total, total), created_open_time, created_close_time
FROM sales WHERE request_id = %(request_id)s

-- name: sale_by_id
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit,
       eligible_users_only, overtaking_allowed, state, create_time, open_time, close_time, state_time, state_actor
FROM sales WHERE sale_id = %(sale_id)s

-- name: lock_sale
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit,
       eligible_users_only, overtaking_allowed, state, create_time, open_time, close_time, state_time, state_actor
FROM sales WHERE sale_id = %(sale_id)s
FOR NO KEY UPDATE

-- name: sales_page
SELECT sale_id::text, display_name, unit_price_minor, currency_code, total, per_user_limit, per_purchase_limit,
       eligible_users_only, overtaking_allowed, state, create_time, open_time, close_time, state_time, state_actor
FROM sales
WHERE %(after_time)s::timestamptz IS NULL OR (create_time, sale_id) < (%(after_time)s, %(after_id)s::uuid)
ORDER BY create_time DESC, sale_id DESC
LIMIT %(size)s

-- name: set_state
-- The state, the times and the total of a sale whose row is locked, and the note of who did it and when.
WITH moment AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), changed AS (
    UPDATE sales
    SET state = %(state)s, open_time = %(open_time)s, close_time = %(close_time)s, total = %(total)s,
        state_time = CASE WHEN state = %(state)s THEN state_time ELSE moment.now END,
        state_actor = CASE WHEN state = %(state)s THEN state_actor ELSE %(actor)s END
    FROM moment
    WHERE sale_id = %(sale_id)s
    RETURNING sale_id, state_time, state_actor
), noted AS (
    INSERT INTO sale_changes (sale_id, change_time, actor, from_state, to_state, total)
    SELECT c.sale_id, m.now, %(actor)s, %(from_state)s, %(state)s, %(total)s FROM changed c CROSS JOIN moment m
)
SELECT state_time, state_actor FROM changed

-- name: now_and_all_owned
-- A statement of its own after the one that locked the sale: that one's view of other tables may be older than its lock.
SELECT clock_timestamp(),
       p.next_number > p.total
       AND NOT EXISTS (SELECT 1 FROM share_numbers n WHERE n.sale_id = p.sale_id AND n.reservation_id IS NULL)
FROM share_pools p WHERE p.sale_id = %(sale_id)s

-- name: add_total
INSERT INTO sale_totals (sale_id, total) VALUES (%(sale_id)s, %(total)s)

-- name: raise_pool
UPDATE share_pools SET total = %(total)s WHERE sale_id = %(sale_id)s

-- name: due_sales
-- Sales of which a change may be due, with whether it would shut a gate that may be in use. The transaction that makes
-- the change judges anew.
SELECT s.sale_id::text, s.state IN ('OPEN', 'SOLD_OUT') AND coalesce(s.close_time <= clock_timestamp(), false)
FROM sales s JOIN share_pools p USING (sale_id)
WHERE s.state <> 'CLOSED'
  AND (s.close_time <= clock_timestamp()
       OR (s.state = 'SCHEDULED' AND s.open_time <= clock_timestamp())
       OR (s.state IN ('OPEN', 'SOLD_OUT')
           AND (s.state = 'SOLD_OUT') <> (p.next_number > p.total
               AND NOT EXISTS (SELECT 1 FROM share_numbers n
                               WHERE n.sale_id = s.sale_id AND n.reservation_id IS NULL))))
LIMIT %(most)s

-- name: next_appointment
-- Seconds until the next opening or closing, NULL when none is set.
SELECT extract(epoch FROM min(a.due_time) - clock_timestamp())::double precision
FROM sales s
CROSS JOIN LATERAL (VALUES (CASE WHEN s.state = 'SCHEDULED' THEN s.open_time END), (s.close_time)) AS a(due_time)
WHERE s.state <> 'CLOSED' AND a.due_time > clock_timestamp()

-- name: sale_changes_page
SELECT change_id, change_time, actor, from_state, to_state, total
FROM sale_changes WHERE sale_id = %(sale_id)s AND change_id > %(after_id)s
ORDER BY change_id
LIMIT %(size)s

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
