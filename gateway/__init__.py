"""The HTTP edge: admits, authenticates and batches purchases, and answers reads. Keeps nothing and stores nothing."""
