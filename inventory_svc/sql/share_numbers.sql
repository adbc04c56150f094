-- name: lock_pools
SELECT p.sale_id::text, p.next_number, p.total
FROM share_pools p WHERE p.sale_id = ANY(%(sale_ids)s::uuid[])
ORDER BY p.sale_id
FOR NO KEY UPDATE

-- name: freed_numbers
SELECT share_number FROM share_numbers
WHERE sale_id = %(sale_id)s AND reservation_id IS NULL
ORDER BY share_number
LIMIT %(most)s

-- name: take_numbers
-- One row per unit. A number that is freed is taken by the update, a fresh one by the insert; one that has an owner by
-- neither, and the caller sees that it is missing. Goes by the unique index whatever the statistics say: a join with
-- the freed numbers was planned as a scan of the whole sale for each unit while the sale was new to them.
WITH pool AS (
    UPDATE share_pools SET next_number = %(next_number)s
    WHERE sale_id = %(sale_id)s AND next_number <> %(next_number)s
)
INSERT INTO share_numbers AS s (sale_id, share_number, total, reservation_id)
SELECT %(sale_id)s, w.share_number, %(total)s, w.reservation_id
FROM unnest(%(numbers)s::integer[], %(ids)s::uuid[]) AS w(share_number, reservation_id)
ON CONFLICT (sale_id, share_number) DO UPDATE SET reservation_id = excluded.reservation_id
    WHERE s.reservation_id IS NULL

-- name: numbers_of
SELECT reservation_id::text, share_number FROM share_numbers WHERE reservation_id = ANY(%(ids)s::uuid[])

-- name: free_numbers
UPDATE share_numbers SET reservation_id = NULL WHERE reservation_id = ANY(%(ids)s::uuid[])
