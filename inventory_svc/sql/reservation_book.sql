-- name: insert_reservations
-- The fence: no row unless the grant's epoch is still the sale's. FOR SHARE (FOR KEY SHARE would not do) makes a
-- recalibration that bumps the epoch wait for this statement, and this statement see the bump.
WITH fence AS (
    SELECT sale_id, epoch FROM sale_epochs WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s FOR SHARE
), inserted AS (
    INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)
    SELECT w.reservation_id, f.sale_id, w.user_id, w.request_id, w.quantity, 'RESERVED', f.epoch
    FROM fence f, unnest(%(ids)s::uuid[], %(users)s::text[], %(requests)s::text[], %(quantities)s::integer[])
         AS w(reservation_id, user_id, request_id, quantity)
    ON CONFLICT (reservation_id) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM fence), (SELECT count(*) FROM inserted)

-- name: lock_line
SELECT FROM sale_lines WHERE sale_id = %(sale_id)s FOR NO KEY UPDATE

-- name: insert_tombstones
-- Takes no unit, so it needs no fence. Under the lock of the sale's line: whoever waits is left alone, and nobody joins
-- meanwhile.
INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)
SELECT w.reservation_id, %(sale_id)s, w.user_id, w.request_id, w.quantity, 'RELEASED', %(epoch)s
FROM unnest(%(ids)s::uuid[], %(users)s::text[], %(requests)s::text[], %(quantities)s::integer[])
     AS w(reservation_id, user_id, request_id, quantity)
WHERE w.reservation_id NOT IN (SELECT q.reservation_id FROM waitlist q WHERE q.reservation_id = ANY(%(ids)s::uuid[]))
ORDER BY w.reservation_id
ON CONFLICT (reservation_id) DO NOTHING

-- name: stored_reservations
SELECT reservation_id::text, sale_id::text, user_id, request_id, quantity, state
FROM reservations WHERE reservation_id = ANY(%(ids)s::uuid[])

-- name: calibration_rows
-- In one statement, so that whoever is promoted meanwhile is seen before or after it, not twice or not at all.
SELECT reservation_id::text, user_id, request_id, quantity, state FROM reservations WHERE sale_id = %(sale_id)s
UNION ALL
SELECT reservation_id::text, user_id, request_id, quantity, state FROM waitlist
WHERE sale_id = %(sale_id)s AND state = 'WAITING'

-- name: book_stock
-- reserved from the reservations, sold from the share numbers, available as recalibration would load it: the three
-- come from different rows, so their sum is the total only if those agree.
SELECT s.total - coalesce(r.taken, 0), coalesce(r.reserved, 0), n.owned, s.total, e.epoch,
       s.state IN ('OPEN', 'SOLD_OUT'), w.waiting
FROM sales s
JOIN sale_epochs e USING (sale_id)
CROSS JOIN (
    SELECT sum(quantity) FILTER (WHERE state <> 'RELEASED') AS taken,
           sum(quantity) FILTER (WHERE state = 'RESERVED') AS reserved
    FROM reservations WHERE sale_id = %(sale_id)s
) r
CROSS JOIN (
    SELECT count(*) AS owned FROM share_numbers WHERE sale_id = %(sale_id)s AND reservation_id IS NOT NULL
) n
CROSS JOIN (
    SELECT count(*) AS waiting FROM waitlist WHERE sale_id = %(sale_id)s AND state = 'WAITING'
) w
WHERE s.sale_id = %(sale_id)s

-- name: reservations_by_id
SELECT r.reservation_id::text, r.sale_id::text, r.user_id, r.request_id, r.quantity, r.state,
       coalesce((SELECT array_agg(n.share_number ORDER BY n.share_number)
                 FROM share_numbers n WHERE n.reservation_id = r.reservation_id), '{}'),
       r.create_time, r.update_time
FROM reservations r WHERE r.reservation_id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT w.reservation_id::text, w.sale_id::text, w.user_id, w.request_id, w.quantity, w.state, '{}', w.join_time,
       w.join_time
FROM waitlist w WHERE w.reservation_id = ANY(%(ids)s::uuid[]) AND w.end_time IS NULL

-- name: reservations_page
SELECT r.reservation_id::text, r.sale_id::text, r.user_id, r.request_id, r.quantity, r.state,
       coalesce((SELECT array_agg(n.share_number ORDER BY n.share_number)
                 FROM share_numbers n WHERE n.reservation_id = r.reservation_id), '{}'),
       r.create_time, r.update_time
FROM reservations r
WHERE r.sale_id = %(sale_id)s
  AND (r.create_time, r.reservation_id)
      > (coalesce(%(after_time)s::timestamptz, '-infinity'), coalesce(%(after_id)s::uuid, '00000000-0000-0000-0000-000000000000'))
  AND (%(state)s::text IS NULL OR r.state = %(state)s)
  AND (%(min_age_ms)s::bigint = 0
       OR r.create_time <= clock_timestamp() - %(min_age_ms)s * interval '1 millisecond')
ORDER BY r.create_time, r.reservation_id
LIMIT %(size)s

-- name: lock_reservations
SELECT r.reservation_id::text, r.sale_id::text, r.quantity, r.state
FROM reservations r WHERE r.reservation_id = ANY(%(ids)s::uuid[])
ORDER BY r.reservation_id
FOR NO KEY UPDATE

-- name: set_reservation_states
UPDATE reservations SET state = %(state)s, update_time = clock_timestamp()
WHERE reservation_id = ANY(%(ids)s::uuid[])
