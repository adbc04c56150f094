-- What the settlement workers share, besides the purchases themselves.

-- The one token bucket of all workers, as the generic cell rate algorithm keeps it (ITU-T I.371): a single time.
CREATE TABLE settlement_pace (
    only_row                  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- When the bucket is full again if nobody takes another token; by this database's clock.
    theoretical_arrival_time  timestamptz NOT NULL
);
INSERT INTO settlement_pace (theoretical_arrival_time) VALUES (clock_timestamp());

-- How far each partition has been worked through. A partition's queue is first in, first out, so a purchase that was
-- queued well before one that has been claimed, and is not claimed itself, is in no queue any more.
CREATE TABLE settlement_partitions (
    partition           smallint PRIMARY KEY CHECK (partition BETWEEN 0 AND 15),
    -- When a purchase of this partition was last claimed.
    claim_time          timestamptz,
    -- The latest queue_time of a purchase claimed so far.
    claimed_queue_time  timestamptz
);
INSERT INTO settlement_partitions (partition) SELECT generate_series(0, 15);

-- Who sweeps. A lease and not an advisory lock, because a sweep calls other services and must not keep a connection.
CREATE TABLE settlement_leases (
    lease_name   text PRIMARY KEY,
    holder       uuid NOT NULL,
    expire_time  timestamptz NOT NULL
);
