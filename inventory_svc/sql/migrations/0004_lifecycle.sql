-- The life of a sale: times at which it opens and closes by itself, who changed what and when, a total that can be
-- raised, and sales for certain users only.

ALTER TABLE sales ADD COLUMN IF NOT EXISTS overtaking_allowed boolean NOT NULL DEFAULT false;
ALTER TABLE sales
    DROP CONSTRAINT sales_state_check,
    ADD CONSTRAINT sales_state_check CHECK (state IN ('DRAFT', 'SCHEDULED', 'OPEN', 'PAUSED', 'SOLD_OUT', 'CLOSED')),
    ADD COLUMN open_time            timestamptz,
    ADD COLUMN close_time           timestamptz,
    ADD COLUMN eligible_users_only  boolean NOT NULL DEFAULT false,
    ADD COLUMN state_time           timestamptz NOT NULL DEFAULT clock_timestamp(),
    ADD COLUMN state_actor          text NOT NULL DEFAULT '',
    -- As the creation asked for them, by which a repetition of it is known; the others may have changed since.
    ADD COLUMN created_total        integer,
    ADD COLUMN created_open_time    timestamptz,
    ADD COLUMN created_close_time   timestamptz,
    ADD CONSTRAINT sales_scheduled_check CHECK (state <> 'SCHEDULED' OR open_time IS NOT NULL);
-- When an older sale last changed its state was not noted: not before its creation.
UPDATE sales SET created_total = total, state_time = create_time;
CREATE INDEX sales_on ON sales (sale_id) WHERE state <> 'CLOSED';

-- What was done with a sale; in the order of change_id, because whoever writes one holds the sale's row.
CREATE TABLE sale_changes (
    change_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sale_id      uuid NOT NULL REFERENCES sales,
    change_time  timestamptz NOT NULL,
    actor        text NOT NULL,
    from_state   text,
    to_state     text NOT NULL,
    total        integer NOT NULL
);
CREATE INDEX sale_changes_of_sale ON sale_changes (sale_id, change_id);
-- Of older sales only the creation is known, and so only it is told.
INSERT INTO sale_changes (sale_id, change_time, actor, to_state, total)
SELECT sale_id, create_time, '', 'DRAFT', total FROM sales ORDER BY create_time;

-- Every total that a sale has had. A share number keeps the one it was first assigned under, so that raising the total
-- rewrites no number, and none can be beyond a total that the sale has really had.
CREATE TABLE sale_totals (
    sale_id     uuid NOT NULL REFERENCES sales,
    total       integer NOT NULL CHECK (total BETWEEN 1 AND 10000000),
    raise_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sale_id, total)
);
INSERT INTO sale_totals (sale_id, total, raise_time) SELECT sale_id, total, create_time FROM sales;
ALTER TABLE share_numbers
    DROP CONSTRAINT share_numbers_sale_id_total_fkey,
    ADD CONSTRAINT share_numbers_sale_id_total_fkey FOREIGN KEY (sale_id, total) REFERENCES sale_totals (sale_id, total);
ALTER TABLE share_pools
    DROP CONSTRAINT share_pools_sale_id_total_key,
    ADD CONSTRAINT share_pools_sale_id_total_fkey FOREIGN KEY (sale_id, total) REFERENCES sale_totals (sale_id, total);

-- Who may buy in a sale with eligible_users_only. Rows are only ever added.
CREATE TABLE eligible_users (
    sale_id  uuid NOT NULL REFERENCES sales,
    user_id  text NOT NULL,
    PRIMARY KEY (sale_id, user_id)
);
