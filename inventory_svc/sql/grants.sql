-- What the service may do with its tables: {app} is the role it connects as. Given by `migrate`, all at once.

GRANT SELECT ON schema_migrations TO {app};

-- Price, currency and limits of a sale stay as they were asked for, and so does who asked.
GRANT SELECT, UPDATE (state, state_time, state_actor, open_time, close_time, total),
      INSERT (sale_id, request_id, display_name, unit_price_minor, currency_code, total, per_user_limit,
              per_purchase_limit, eligible_users_only, overtaking_allowed, state, state_actor, open_time, close_time,
              created_total, created_open_time, created_close_time)
      ON sales TO {app};

-- What was done with a sale, which totals it has had, and who may buy, is only ever added to.
GRANT SELECT, INSERT (sale_id, change_time, actor, from_state, to_state, total) ON sale_changes TO {app};
GRANT INSERT (sale_id, total) ON sale_totals TO {app};
GRANT SELECT, INSERT (sale_id, user_id) ON eligible_users TO {app};

-- To lock a row, even to share it, takes the right to change it.
GRANT SELECT, INSERT (sale_id), UPDATE (epoch) ON sale_epochs TO {app};
GRANT SELECT, INSERT (sale_id), UPDATE (epoch, expire_time) ON calibration_leases TO {app};

-- A reservation is never removed, and never becomes another user's or another quantity.
GRANT SELECT, UPDATE (state, update_time),
      INSERT (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)
      ON reservations TO {app};

GRANT SELECT, INSERT (sale_id, total), UPDATE (total, next_number) ON share_pools TO {app};
GRANT SELECT, INSERT (sale_id, share_number, total, reservation_id), UPDATE (reservation_id) ON share_numbers TO {app};

-- The outbox: written with the transition, deleted when Redis has followed.
GRANT SELECT, INSERT (sale_id, kind, reservation_ids, promoted_ids), DELETE ON gate_moves TO {app};

-- Nobody's ticket changes, and nobody who ever joined is forgotten.
GRANT SELECT, INSERT (sale_id), UPDATE (next_ticket, next_decision, waiting, waiting_units) ON sale_lines TO {app};
GRANT SELECT, UPDATE (state, end_time, decision_number, acknowledged),
      INSERT (reservation_id, sale_id, user_id, request_id, quantity, ticket)
      ON waitlist TO {app};
GRANT SELECT, INSERT (sale_id, block, waiting, waiting_units), UPDATE (waiting, waiting_units) ON waitlist_blocks TO {app};
