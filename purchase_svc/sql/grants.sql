-- What the service may do with its tables: {app} is the role it connects as. Given by `migrate`, all at once.

GRANT SELECT ON schema_migrations TO {app};

-- A purchase is never removed; who bought what of which sale, and for how much, stays as it was accepted.
GRANT SELECT,
      INSERT (purchase_id, user_id, sale_id, request_id, quantity, amount_minor, currency_code, partition, waitlisted,
              state, reason, cleanup_pending, create_time, update_time, batch_id, waitlist_time, final_time),
      UPDATE (state, reason, share_numbers, attempts, cleanup_pending, update_time, queue_time, claim_time,
              first_claim_time, final_time, waitlisted, refund_pending, promote_time, park_time, refund_time,
              refunded_time)
      ON purchases TO {app};
GRANT USAGE ON SEQUENCE purchase_batches TO {app};
GRANT SELECT, INSERT (batch_id, queue_time) ON queued_batches TO {app};

-- Rows that migration made, one for all workers and one for each partition.
GRANT SELECT, UPDATE (theoretical_arrival_time) ON settlement_pace TO {app};
GRANT SELECT, UPDATE (claim_time, claimed_queue_time, busy_time) ON settlement_partitions TO {app};

GRANT SELECT, INSERT (lease_name, holder, expire_time), UPDATE (holder, expire_time), DELETE
      ON settlement_leases TO {app};
