-- One row per purchase, from its reservation to its final state. The row is what was promised to the buyer; what
-- travels in the queue is only its id.

CREATE TABLE purchases (
    -- UUIDv5 of user, sale and request id; also the reservation's and the hold's id.
    purchase_id       uuid PRIMARY KEY,
    user_id           text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 128),
    sale_id           uuid NOT NULL,
    request_id        text NOT NULL CHECK (char_length(request_id) BETWEEN 1 AND 128),
    quantity          integer NOT NULL CHECK (quantity >= 1),
    -- What all units cost together, minor units.
    amount_minor      bigint NOT NULL CHECK (amount_minor >= 0),
    currency_code     text NOT NULL CHECK (char_length(currency_code) = 3),
    -- Settlement partition, stable hash of the user id.
    partition         smallint NOT NULL CHECK (partition BETWEEN 0 AND 15),
    state             text NOT NULL DEFAULT 'RESERVED'
                      CHECK (state IN ('RESERVED', 'SETTLING', 'CONFIRMED', 'FAILED', 'CANCELLED', 'PARKED')),
    -- Number of the ErrorReason.
    reason            integer NOT NULL DEFAULT 0,
    -- Ascending.
    share_numbers     integer[] NOT NULL DEFAULT '{}',
    -- Times a worker has claimed it.
    attempts          integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- FAILED or CANCELLED, and its reservation or hold may still be open.
    cleanup_pending   boolean NOT NULL DEFAULT false,
    create_time       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When the state last changed, or a worker last claimed it.
    update_time       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When RabbitMQ confirmed the message that carries it; NULL: not known to be queued.
    queue_time        timestamptz,
    claim_time        timestamptz,
    first_claim_time  timestamptz,
    final_time        timestamptz,
    -- Shares and a charge, or neither.
    CHECK ((state = 'CONFIRMED') = (cardinality(share_numbers) > 0)),
    CHECK (state <> 'CONFIRMED' OR (cardinality(share_numbers) = quantity AND reason = 0)),
    CHECK (state NOT IN ('FAILED', 'PARKED') OR reason <> 0),
    CHECK (NOT cleanup_pending OR state IN ('FAILED', 'CANCELLED')),
    CHECK ((state IN ('CONFIRMED', 'FAILED', 'CANCELLED')) = (final_time IS NOT NULL))
)
-- Every purchase is updated about three times in its first minute: room in its page keeps those versions together.
WITH (fillfactor = 60);

CREATE INDEX purchases_by_sale ON purchases (sale_id, purchase_id);
CREATE INDEX purchases_by_user ON purchases (user_id, purchase_id);
-- For the sweeper. A claim and the note that a purchase was queued change no column that any index mentions, in its key or
-- its condition, so that these two updates touch no index at all (heap-only tuples).
CREATE INDEX purchases_unfinished ON purchases (create_time) WHERE final_time IS NULL;
CREATE INDEX purchases_to_clean_up ON purchases (purchase_id) WHERE cleanup_pending;
