-- The line of each sale: who waits for units, in which order, and what has become of them.

ALTER TABLE sales ADD COLUMN overtaking_allowed boolean NOT NULL DEFAULT false;

-- Locked by whoever changes the sale's line: so tickets and decisions are numbered in the order in which they commit.
CREATE TABLE sale_lines (
    sale_id        uuid PRIMARY KEY REFERENCES sales,
    next_ticket    bigint NOT NULL DEFAULT 1,
    next_decision  bigint NOT NULL DEFAULT 1,
    waiting        bigint NOT NULL DEFAULT 0 CHECK (waiting >= 0),
    waiting_units  bigint NOT NULL DEFAULT 0 CHECK (waiting_units >= waiting)
);
INSERT INTO sale_lines (sale_id) SELECT sale_id FROM sales;

-- Everybody who ever joined. Of an id that waits there is no reservation; of one that no longer does there is, RESERVED
-- or RELEASED at first.
CREATE TABLE waitlist (
    reservation_id   uuid PRIMARY KEY,
    sale_id          uuid NOT NULL,
    user_id          text NOT NULL,
    request_id       text NOT NULL,
    quantity         integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
    ticket           bigint NOT NULL,
    state            text NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'PROMOTED', 'LEFT', 'CLOSED')),
    decision_number  bigint NOT NULL DEFAULT 0,
    acknowledged     boolean NOT NULL DEFAULT false,
    join_time        timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_time         timestamptz,
    CHECK ((state = 'WAITING') = (end_time IS NULL) AND (state = 'WAITING') = (decision_number = 0))
);
CREATE UNIQUE INDEX waitlist_of_sale ON waitlist (sale_id, ticket);
CREATE INDEX waitlist_waiting ON waitlist (sale_id, ticket) WHERE state = 'WAITING';
CREATE INDEX waitlist_untold ON waitlist (end_time, decision_number) WHERE state <> 'WAITING' AND NOT acknowledged;

-- How many wait with the tickets of a block: block = ticket / 256. A place in line is the sum of the blocks before its
-- own and a count within it, so that a line of 100,000 costs 400 rows.
CREATE TABLE waitlist_blocks (
    sale_id        uuid NOT NULL,
    block          bigint NOT NULL,
    waiting        bigint NOT NULL CHECK (waiting >= 0),
    waiting_units  bigint NOT NULL CHECK (waiting_units >= waiting),
    PRIMARY KEY (sale_id, block)
) WITH (fillfactor = 50);

-- Who got the units of a release in its own transaction: the gate swaps the records in one step.
ALTER TABLE gate_moves ADD COLUMN promoted_ids uuid[] NOT NULL DEFAULT '{}';
