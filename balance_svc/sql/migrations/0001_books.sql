-- The books of the Balance Service: accounts, holds, deposits and withdrawals, and the ledger.
--
-- Text keys are ordered by code point (COLLATE "C"), so that every session locks accounts in the same order whatever
-- the database's locale is.

CREATE TABLE accounts (
    user_id        text COLLATE "C" NOT NULL,
    currency_code  text COLLATE "C" NOT NULL,
    balance_minor  bigint NOT NULL DEFAULT 0,
    held_minor     bigint NOT NULL DEFAULT 0,
    create_time    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, currency_code),
    CONSTRAINT accounts_held_within_balance CHECK (0 <= held_minor AND held_minor <= balance_minor)
) WITH (fillfactor = 70);  -- room for updates beside the row: balances change, keys never do

-- No foreign key to accounts: the refusal for want of an account is a row too.
CREATE TABLE holds (
    hold_id         uuid PRIMARY KEY,
    user_id         text COLLATE "C" NOT NULL,
    currency_code   text COLLATE "C" NOT NULL,
    amount_minor    bigint NOT NULL CHECK (amount_minor > 0),
    beneficiary     text COLLATE "C" NOT NULL,
    state           text COLLATE "C" NOT NULL
                    CHECK (state IN ('HELD', 'CAPTURED', 'RELEASED', 'EXPIRED', 'REFUSED', 'REVERSED')),
    refusal_reason  text COLLATE "C" CHECK (refusal_reason IN ('INSUFFICIENT_FUNDS', 'ACCOUNT_NOT_FOUND')),
    create_time     timestamptz NOT NULL,
    expire_time     timestamptz,
    end_time        timestamptz,
    CONSTRAINT holds_refused_for_a_reason CHECK ((state = 'REFUSED') = (refusal_reason IS NOT NULL)),
    CONSTRAINT holds_expire_unless_refused CHECK ((state = 'REFUSED') = (expire_time IS NULL)),
    CONSTRAINT holds_end_when_they_leave_held CHECK ((state = 'HELD') = (end_time IS NULL))
) WITH (fillfactor = 70);

-- What the expirer looks for; holds only what is open, so it stays small.
CREATE INDEX holds_open_by_expire_time ON holds (expire_time) WHERE state = 'HELD';

-- Deposits and withdrawals by request id, refused ones too, with what was asked for: a repetition is recognised by it.
CREATE TABLE transfers (
    request_id      text COLLATE "C" PRIMARY KEY,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('DEPOSIT', 'WITHDRAWAL')),
    user_id         text COLLATE "C" NOT NULL,
    currency_code   text COLLATE "C" NOT NULL,
    amount_minor    bigint NOT NULL CHECK (amount_minor > 0),
    refusal_reason  text COLLATE "C" CHECK (refusal_reason IN ('INSUFFICIENT_FUNDS', 'ACCOUNT_NOT_FOUND')),
    create_time     timestamptz NOT NULL
);

CREATE TABLE ledger_entries (
    entry_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id    text COLLATE "C" NOT NULL,
    account        text COLLATE "C" NOT NULL,
    amount_minor   bigint NOT NULL CHECK (amount_minor <> 0),
    currency_code  text COLLATE "C" NOT NULL,
    kind           text COLLATE "C" NOT NULL CHECK (kind IN ('DEPOSIT', 'WITHDRAWAL', 'CAPTURE', 'REVERSAL')),
    create_time    timestamptz NOT NULL
);

-- The last judge: a transfer takes money once, whatever the program does. One side is enough, the other comes with it.
CREATE UNIQUE INDEX ledger_entries_once ON ledger_entries (transfer_id) WHERE amount_minor < 0;

CREATE INDEX ledger_entries_by_account ON ledger_entries (account, entry_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END
$$;

-- Triggers and not revoked rights, because the service's role owns its tables and could grant itself what it lacks.
CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A generic plan made while the tables were small would scan a whole table for every batch once they are large, until
-- the next ANALYZE. Planning costs a batch of hundreds nothing worth keeping. JIT only delays queries of this size.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET plan_cache_mode = force_custom_plan', current_database());
    EXECUTE format('ALTER DATABASE %I SET jit = off', current_database());
END
$$;
