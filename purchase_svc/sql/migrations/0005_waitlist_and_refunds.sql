-- Purchases that wait in line, and purchases that are refunded.
--
-- What indexes mention of the two are columns of their own, `waitlisted` and `refund_pending`, and never `state`: a claim
-- changes the state, and must go on to touch no index (heap-only tuples; see 0001).

ALTER TABLE purchases
    -- WAITLISTED: has no units yet, and is nobody's to settle or to sweep.
    ADD COLUMN waitlisted      boolean NOT NULL DEFAULT false,
    -- REFUNDING: its money or its shares are still to be given back.
    ADD COLUMN refund_pending  boolean NOT NULL DEFAULT false,
    -- When it joined the line; NULL: it was bought directly.
    ADD COLUMN waitlist_time   timestamptz,
    -- When it came to its units from the line; NULL: it was bought directly, or never came to any.
    ADD COLUMN promote_time    timestamptz,
    -- When its attempts were exhausted last; NULL: never.
    ADD COLUMN park_time       timestamptz,
    -- When its refund was asked for, and when it was done. final_time stays what it was: when it was CONFIRMED.
    ADD COLUMN refund_time     timestamptz,
    ADD COLUMN refunded_time   timestamptz;

-- By 0001, in the order in which they stand there.
ALTER TABLE purchases
    DROP CONSTRAINT purchases_state_check,
    DROP CONSTRAINT purchases_check,
    DROP CONSTRAINT purchases_check1,
    DROP CONSTRAINT purchases_check4;

ALTER TABLE purchases
    ADD CONSTRAINT purchases_state_check CHECK (state IN (
        'WAITLISTED', 'RESERVED', 'SETTLING', 'CONFIRMED', 'FAILED', 'CANCELLED', 'PARKED', 'REFUNDING', 'REFUNDED'
    )),
    -- Shares and a charge, or neither. While they are given back, the row remembers which shares they were.
    ADD CONSTRAINT purchases_shares_if_won
        CHECK ((state IN ('CONFIRMED', 'REFUNDING')) = (cardinality(share_numbers) > 0)),
    ADD CONSTRAINT purchases_won_in_full
        CHECK (state NOT IN ('CONFIRMED', 'REFUNDING') OR (cardinality(share_numbers) = quantity AND reason = 0)),
    ADD CONSTRAINT purchases_final_at_a_time CHECK (
        (state IN ('CONFIRMED', 'FAILED', 'CANCELLED', 'REFUNDING', 'REFUNDED')) = (final_time IS NOT NULL)
    ),
    ADD CONSTRAINT purchases_waitlisted_in_line CHECK (waitlisted = (state = 'WAITLISTED')),
    ADD CONSTRAINT purchases_in_line_since CHECK (NOT waitlisted OR (waitlist_time IS NOT NULL AND promote_time IS NULL)),
    ADD CONSTRAINT purchases_refund_pending CHECK (refund_pending = (state = 'REFUNDING')),
    ADD CONSTRAINT purchases_refund_since CHECK ((state IN ('REFUNDING', 'REFUNDED')) = (refund_time IS NOT NULL)),
    ADD CONSTRAINT purchases_refunded_at CHECK ((state = 'REFUNDED') = (refunded_time IS NOT NULL));

-- A purchase is unsettled since it has its units: a hundred thousand who wait in line are none of the sweeper's business,
-- and one of them who is promoted is new, however long the line was.
DROP INDEX purchases_unfinished;
CREATE INDEX purchases_unsettled ON purchases ((COALESCE(promote_time, create_time)))
    WHERE final_time IS NULL AND NOT waitlisted;
CREATE INDEX purchases_to_refund ON purchases (purchase_id) WHERE refund_pending;
