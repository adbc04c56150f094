-- A worker that waits for tokens, or for a service that is away, claims nothing for a while and has lost nothing.
ALTER TABLE settlement_partitions
    -- When a worker last had messages of this partition in hand.
    ADD COLUMN busy_time timestamptz;
