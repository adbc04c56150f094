-- What the service may do with its tables: {app} is the role it connects as. Given by `migrate`, all at once.
-- The ledger and the transfers are append-only for it: no UPDATE, no DELETE, no TRUNCATE, and no way to get them.

GRANT SELECT ON schema_migrations TO {app};

-- An account is made empty, and is never renamed or removed.
GRANT SELECT, INSERT (user_id, currency_code), UPDATE (balance_minor, held_minor) ON accounts TO {app};

-- Of a hold only the state moves on: whose it is and how much was decided when it was placed.
GRANT SELECT, UPDATE (state, end_time),
      INSERT (hold_id, user_id, currency_code, amount_minor, beneficiary, state, refusal_reason, create_time, expire_time,
              end_time)
      ON holds TO {app};

GRANT SELECT, INSERT (request_id, kind, user_id, currency_code, amount_minor, refusal_reason, create_time)
      ON transfers TO {app};

GRANT SELECT, INSERT (transfer_id, account, amount_minor, currency_code, kind, create_time) ON ledger_entries TO {app};
