-- name: lock_pools
SELECT sale_id FROM share_pools WHERE sale_id = ANY(%(sale_ids)s::uuid[]) ORDER BY sale_id FOR NO KEY UPDATE

-- name: assign_numbers
-- One row per unit wanted, in the order of the reservations given; freed numbers are used up first, lowest first.
-- The sale's pool row must be locked by an earlier statement of the transaction.
WITH wanted AS (
    SELECT r.reservation_id, row_number() OVER (ORDER BY r.place, unit) AS place
    FROM unnest(%(ids)s::uuid[], %(quantities)s::integer[]) WITH ORDINALITY AS r(reservation_id, quantity, place),
         generate_series(1, r.quantity) AS unit
), freed AS (
    SELECT share_number, row_number() OVER (ORDER BY share_number) AS place
    FROM (
        SELECT share_number FROM share_numbers
        WHERE sale_id = %(sale_id)s AND reservation_id IS NULL
        ORDER BY share_number
        LIMIT (SELECT count(*) FROM wanted)
    ) AS lowest
), reused AS (
    UPDATE share_numbers s SET reservation_id = w.reservation_id
    FROM freed f JOIN wanted w USING (place)
    WHERE s.sale_id = %(sale_id)s AND s.share_number = f.share_number
    RETURNING s.reservation_id, s.share_number
), fresh AS (
    INSERT INTO share_numbers (sale_id, share_number, total, reservation_id)
    SELECT p.sale_id, p.next_number + w.place - 1 - (SELECT count(*) FROM freed), p.total, w.reservation_id
    FROM wanted w JOIN share_pools p ON p.sale_id = %(sale_id)s
    WHERE w.place > (SELECT count(*) FROM freed)
    RETURNING reservation_id, share_number
), taken AS (
    UPDATE share_pools SET next_number = next_number + (SELECT count(*) FROM fresh)
    WHERE sale_id = %(sale_id)s AND (SELECT count(*) FROM fresh) > 0
)
SELECT reservation_id::text, share_number FROM reused
UNION ALL
SELECT reservation_id::text, share_number FROM fresh

-- name: numbers_of
SELECT reservation_id::text, share_number FROM share_numbers WHERE reservation_id = ANY(%(ids)s::uuid[])

-- name: free_numbers
UPDATE share_numbers SET reservation_id = NULL WHERE reservation_id = ANY(%(ids)s::uuid[])
