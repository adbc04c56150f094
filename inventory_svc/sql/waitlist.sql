-- name: share_epochs
-- Fences a change of these sales' lines: from here on nobody bumps their epochs until it is committed.
SELECT sale_id::text, epoch FROM sale_epochs WHERE sale_id = ANY(%(sale_ids)s::uuid[])
ORDER BY sale_id
FOR SHARE

-- name: lock_lines
-- After the epochs, in a statement of its own: a change of a sale's state is committed with its epoch, so the state seen
-- here is the present one.
SELECT l.sale_id::text, l.waiting, s.state, s.overtaking_allowed
FROM sale_lines l JOIN sales s USING (sale_id)
WHERE l.sale_id = ANY(%(sale_ids)s::uuid[])
ORDER BY l.sale_id
FOR NO KEY UPDATE OF l

-- name: lock_line_of_epoch
-- The fence of insert_reservations, and then the line.
WITH fence AS MATERIALIZED (
    SELECT sale_id FROM sale_epochs WHERE sale_id = %(sale_id)s AND epoch = %(epoch)s FOR SHARE
)
SELECT s.overtaking_allowed
FROM fence f JOIN sale_lines l USING (sale_id) JOIN sales s USING (sale_id)
FOR NO KEY UPDATE OF l

-- name: join_line
-- Under the line's lock. Ids that have a row, here or among the reservations, are left as they are. They are looked up
-- by themselves, because a join with the ids is planned as a scan of everything while the tables are new to the planner.
WITH known AS MATERIALIZED (
    SELECT reservation_id FROM reservations WHERE reservation_id = ANY(%(ids)s::uuid[])
    UNION ALL
    SELECT reservation_id FROM waitlist WHERE reservation_id = ANY(%(ids)s::uuid[])
), fresh AS (
    SELECT w.*, row_number() OVER (ORDER BY w.place) - 1 AS rank
    FROM unnest(%(ids)s::uuid[], %(users)s::text[], %(requests)s::text[], %(quantities)s::integer[])
         WITH ORDINALITY AS w(reservation_id, user_id, request_id, quantity, place)
    WHERE w.reservation_id NOT IN (SELECT reservation_id FROM known)
), line AS (
    UPDATE sale_lines l
    SET next_ticket = l.next_ticket + f.requests, waiting = l.waiting + f.requests,
        waiting_units = l.waiting_units + f.units
    FROM (SELECT count(*) AS requests, sum(quantity) AS units FROM fresh) f
    WHERE l.sale_id = %(sale_id)s::uuid AND f.requests > 0
    RETURNING l.next_ticket - f.requests AS first_ticket, l.waiting - f.requests AS before
), joined AS (
    INSERT INTO waitlist (reservation_id, sale_id, user_id, request_id, quantity, ticket)
    SELECT f.reservation_id, %(sale_id)s::uuid, f.user_id, f.request_id, f.quantity, line.first_ticket + f.rank
    FROM fresh f CROSS JOIN line
    RETURNING reservation_id, ticket, quantity
), blocks AS (
    INSERT INTO waitlist_blocks AS b (sale_id, block, waiting, waiting_units)
    SELECT %(sale_id)s::uuid, j.ticket / 256, count(*), sum(j.quantity) FROM joined j GROUP BY j.ticket / 256
    ON CONFLICT (sale_id, block) DO UPDATE
    SET waiting = b.waiting + excluded.waiting, waiting_units = b.waiting_units + excluded.waiting_units
)
SELECT j.reservation_id::text, line.before + j.ticket - line.first_ticket + 1 FROM joined j CROSS JOIN line

-- name: waitlist_rows
SELECT reservation_id::text, sale_id::text, user_id, request_id, quantity, state
FROM waitlist WHERE reservation_id = ANY(%(ids)s::uuid[])

-- name: positions
-- That the ids wait is asked by their end_time, so that none but their own index is read for it.
WITH asked AS (
    SELECT reservation_id, sale_id, ticket, ticket / 256 AS block
    FROM waitlist WHERE reservation_id = ANY(%(ids)s::uuid[]) AND end_time IS NULL
), before AS (
    SELECT b.sale_id, b.block,
           sum(b.waiting) OVER earlier - b.waiting AS waiting, sum(b.waiting_units) OVER earlier - b.waiting_units AS units
    FROM waitlist_blocks b WHERE b.sale_id IN (SELECT a.sale_id FROM asked a)
    WINDOW earlier AS (PARTITION BY b.sale_id ORDER BY b.block)
)
SELECT a.reservation_id::text, (b.waiting + w.waiting)::bigint, (b.units + w.units)::bigint
FROM asked a
JOIN before b ON b.sale_id = a.sale_id AND b.block = a.block
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, coalesce(sum(q.quantity) FILTER (WHERE q.ticket < a.ticket), 0) AS units
    FROM waitlist q
    WHERE q.sale_id = a.sale_id AND q.state = 'WAITING' AND q.ticket >= a.block * 256 AND q.ticket <= a.ticket
) w

-- name: first_in_line
-- From the first block in which anybody waits, so that those who have been served are not passed again and again.
SELECT w.reservation_id::text, w.quantity, w.ticket
FROM waitlist w
WHERE w.sale_id = %(sale_id)s AND w.state = 'WAITING' AND w.ticket > %(after_ticket)s
  AND w.ticket >= (SELECT coalesce(min(b.block), 0) * 256 FROM waitlist_blocks b
                   WHERE b.sale_id = %(sale_id)s AND b.waiting > 0)
  AND w.quantity <= %(quantity_max)s
ORDER BY w.ticket
LIMIT %(most)s

-- name: waiting_among
-- Which of these ids wait, in order of the line, and whether anybody else waits before them.
SELECT w.reservation_id::text,
       w.ticket > (SELECT min(q.ticket) FROM waitlist q
                   WHERE q.sale_id = %(sale_id)s AND q.state = 'WAITING' AND q.reservation_id <> ALL(%(ids)s::uuid[]))
FROM waitlist w
WHERE w.reservation_id = ANY(%(ids)s::uuid[]) AND w.end_time IS NULL
ORDER BY w.ticket

-- name: end_waiting
-- Under the line's lock: these ids of its sale, all of which wait, wait no more, and are decided in this order. Each gets
-- the reservation that goes with it: RESERVED, or RELEASED, by which the id is spent for good. That it waits is asked by
-- its end_time, so that no index but that of the ids can serve: the others would be read from end to end. One time for
-- all of them, or the order by time would be that in which they happen to be updated.
WITH ended AS (
    UPDATE waitlist w
    SET state = %(state)s, end_time = (SELECT clock_timestamp()),
        decision_number = (SELECT l.next_decision FROM sale_lines l WHERE l.sale_id = %(sale_id)s)
                          + array_position(%(ids)s::uuid[], w.reservation_id) - 1
    WHERE w.reservation_id = ANY(%(ids)s::uuid[]) AND w.end_time IS NULL
    RETURNING w.reservation_id, w.sale_id, w.user_id, w.request_id, w.quantity, w.ticket
), line AS (
    UPDATE sale_lines l
    SET waiting = l.waiting - e.requests, waiting_units = l.waiting_units - e.units,
        next_decision = l.next_decision + e.requests
    FROM (SELECT count(*) AS requests, sum(quantity) AS units FROM ended) e
    WHERE l.sale_id = %(sale_id)s AND e.requests > 0
), blocks AS (
    UPDATE waitlist_blocks b
    SET waiting = b.waiting - e.requests, waiting_units = b.waiting_units - e.units
    FROM (SELECT ticket / 256 AS block, count(*) AS requests, sum(quantity) AS units FROM ended GROUP BY 1) e
    WHERE b.sale_id = %(sale_id)s AND b.block = e.block
)
INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)
SELECT e.reservation_id, e.sale_id, e.user_id, e.request_id, e.quantity, %(reservation_state)s, %(epoch)s FROM ended e

-- name: lines_with_waiters
SELECT sale_id::text FROM sale_lines WHERE sale_id = ANY(%(sale_ids)s::uuid[]) AND waiting > 0

-- name: lines_to_serve
-- Lines that can move by themselves: of a sale that goes on, and of one that is over, which ends them.
SELECT l.sale_id::text, s.state, s.overtaking_allowed
FROM sale_lines l JOIN sales s USING (sale_id)
WHERE l.waiting > 0 AND s.state IN ('OPEN', 'SOLD_OUT', 'CLOSED')

-- name: line_of
SELECT l.sale_id::text, s.state, s.overtaking_allowed
FROM sale_lines l JOIN sales s USING (sale_id)
WHERE l.sale_id = %(sale_id)s AND l.waiting > 0 AND s.state IN ('OPEN', 'SOLD_OUT', 'CLOSED')

-- name: waitlist_page
SELECT reservation_id::text, sale_id::text, user_id, request_id, quantity, ticket, state, join_time, end_time,
       decision_number
FROM waitlist
WHERE sale_id = %(sale_id)s AND ticket > %(after_ticket)s AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY ticket
LIMIT %(size)s

-- name: untold_outcomes
SELECT reservation_id::text, sale_id::text, user_id, request_id, quantity, ticket, state, join_time, end_time,
       decision_number
FROM waitlist
WHERE state <> 'WAITING' AND NOT acknowledged
ORDER BY end_time, decision_number
LIMIT %(size)s

-- name: acknowledge_outcomes
WITH told AS (
    SELECT reservation_id FROM waitlist
    WHERE reservation_id = ANY(%(ids)s::uuid[]) AND end_time IS NOT NULL AND NOT acknowledged
    ORDER BY reservation_id
    FOR NO KEY UPDATE
)
UPDATE waitlist w SET acknowledged = true FROM told WHERE w.reservation_id = told.reservation_id
