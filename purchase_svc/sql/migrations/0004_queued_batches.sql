-- Purchases are inserted a batch at a time and queued a moment later. That they are queued is noted once for the batch: a
-- note in each row would be a second version of every purchase.

CREATE SEQUENCE purchase_batches;

CREATE TABLE queued_batches (
    batch_id    bigint PRIMARY KEY,
    -- When RabbitMQ had confirmed the messages that carry all of its purchases.
    queue_time  timestamptz NOT NULL
);

-- 0: of no batch. A purchase is known to be queued by its own queue_time, or by its batch's.
ALTER TABLE purchases ADD COLUMN batch_id bigint NOT NULL DEFAULT 0;
