-- name: record_move
INSERT INTO gate_moves (sale_id, kind, reservation_ids, promoted_ids)
VALUES (%(sale_id)s, %(kind)s, %(ids)s::uuid[], %(promoted_ids)s::uuid[])
RETURNING move_id

-- name: moves_left
SELECT move_id, sale_id::text, kind, reservation_ids::text[], promoted_ids::text[] FROM gate_moves
WHERE move_id > %(after_id)s
  AND create_time <= clock_timestamp() - %(min_age_ms)s * interval '1 millisecond'
ORDER BY move_id
LIMIT %(most)s

-- name: releases_to_follow
-- Of these ids the ones whose release the gate has yet to follow.
SELECT DISTINCT r.reservation_id::text
FROM gate_moves m CROSS JOIN unnest(m.reservation_ids) AS r(reservation_id)
WHERE m.sale_id = %(sale_id)s AND m.kind = 'RELEASED' AND r.reservation_id = ANY(%(ids)s::uuid[])

-- name: delete_moves
DELETE FROM gate_moves WHERE move_id = ANY(%(move_ids)s::bigint[])
