-- name: record_move
INSERT INTO gate_moves (sale_id, kind, reservation_ids) VALUES (%(sale_id)s, %(kind)s, %(ids)s::uuid[])
RETURNING move_id

-- name: moves_left
SELECT move_id, sale_id::text, kind, reservation_ids::text[] FROM gate_moves
WHERE move_id > %(after_id)s
  AND create_time <= clock_timestamp() - %(min_age_ms)s * interval '1 millisecond'
ORDER BY move_id
LIMIT %(most)s

-- name: delete_moves
DELETE FROM gate_moves WHERE move_id = ANY(%(move_ids)s::bigint[])
