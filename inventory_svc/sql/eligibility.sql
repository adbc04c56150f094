-- name: add_eligible_users
WITH added AS (
    INSERT INTO eligible_users (sale_id, user_id)
    SELECT %(sale_id)s, w.user_id FROM unnest(%(users)s::text[]) AS w(user_id)
    ON CONFLICT (sale_id, user_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM added

-- name: count_eligible_users
SELECT count(*) FROM eligible_users WHERE sale_id = %(sale_id)s

-- name: eligible_among
SELECT user_id FROM eligible_users WHERE sale_id = %(sale_id)s AND user_id = ANY(%(users)s::text[])
