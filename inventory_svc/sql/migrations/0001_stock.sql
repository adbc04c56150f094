-- Stock of sales: terms, the epoch that fences the count, reservations, share numbers, and what Redis has yet to follow.

CREATE TABLE sales (
    sale_id             uuid PRIMARY KEY,
    request_id          text NOT NULL UNIQUE,
    display_name        text NOT NULL,
    unit_price_minor    bigint NOT NULL CHECK (unit_price_minor BETWEEN 1 AND 1000000000),
    currency_code       text NOT NULL,
    total               integer NOT NULL CHECK (total BETWEEN 1 AND 10000000),
    per_user_limit      integer NOT NULL CHECK (per_user_limit BETWEEN 1 AND 10000000),
    per_purchase_limit  integer NOT NULL CHECK (per_purchase_limit BETWEEN 1 AND 1000),
    state               text NOT NULL CHECK (state IN ('DRAFT', 'OPEN', 'PAUSED', 'CLOSED')),
    create_time         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sales_newest ON sales (create_time DESC, sale_id DESC);

-- The fence. Every INSERT of a reservation holds FOR SHARE on this row; recalibration updates it before it counts.
-- A row of its own, so that nothing hot ever shares it.
CREATE TABLE sale_epochs (
    sale_id  uuid PRIMARY KEY REFERENCES sales,
    epoch    bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0)
);

-- Who is rebuilding the gate, so that two processes do not undo each other's work. Apart from the fence, because ending
-- a lease must not wait for reservations.
CREATE TABLE calibration_leases (
    sale_id      uuid PRIMARY KEY REFERENCES sales,
    epoch        bigint NOT NULL DEFAULT 0,
    expire_time  timestamptz NOT NULL DEFAULT '-infinity'
);

-- No foreign key to sales: the INSERT joins the sale's epoch, which proves the sale, and a check of each row would cost
-- as much as the row.
CREATE TABLE reservations (
    reservation_id  uuid PRIMARY KEY,
    sale_id         uuid NOT NULL,
    user_id         text NOT NULL,
    request_id      text NOT NULL,
    quantity        integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
    state           text NOT NULL CHECK (state IN ('RESERVED', 'SOLD', 'RELEASED')),
    epoch           bigint NOT NULL,
    create_time     timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX reservations_of_sale ON reservations (sale_id, reservation_id);
CREATE INDEX reservations_unsold ON reservations (sale_id, reservation_id) WHERE state = 'RESERVED';

-- Locked by whoever assigns or frees numbers of the sale.
CREATE TABLE share_pools (
    sale_id      uuid PRIMARY KEY REFERENCES sales,
    total        integer NOT NULL CHECK (total BETWEEN 1 AND 10000000),
    next_number  integer NOT NULL DEFAULT 1,
    UNIQUE (sale_id, total),
    CHECK (next_number BETWEEN 1 AND total + 1)
);

-- The last judge: a number has at most one owner and lies in 1..total. NULL: it was freed and is taken again first.
CREATE TABLE share_numbers (
    sale_id         uuid NOT NULL,
    share_number    integer NOT NULL,
    total           integer NOT NULL,
    reservation_id  uuid,
    PRIMARY KEY (sale_id, share_number),
    FOREIGN KEY (sale_id, total) REFERENCES share_pools (sale_id, total),
    CHECK (share_number BETWEEN 1 AND total)
);
CREATE INDEX share_numbers_owned ON share_numbers (reservation_id) WHERE reservation_id IS NOT NULL;
CREATE INDEX share_numbers_free ON share_numbers (sale_id, share_number) WHERE reservation_id IS NULL;

-- Outbox: transitions that are committed here and that Redis has yet to follow. Written with the transition, deleted
-- when Redis has followed.
CREATE TABLE gate_moves (
    move_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sale_id          uuid NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('RELEASED', 'SOLD')),
    reservation_ids  uuid[] NOT NULL,
    create_time      timestamptz NOT NULL DEFAULT clock_timestamp()
);
