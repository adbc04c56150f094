CREATE TABLE sales (
    sale_id   uuid PRIMARY KEY,
    available bigint NOT NULL CHECK (available >= 0),
    price     bigint NOT NULL
);
CREATE TABLE accounts (
    user_id text PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
);
CREATE TABLE purchases (
    purchase_id uuid PRIMARY KEY,
    sale_id     uuid NOT NULL REFERENCES sales,
    user_id     text NOT NULL REFERENCES accounts,
    quantity    int NOT NULL
);
