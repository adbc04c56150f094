-- Whether a smaller wish may go before a larger one in line.
ALTER TABLE sales ADD COLUMN overtaking_allowed boolean NOT NULL DEFAULT false;
