"""A whole sale, seeded, run, followed, told."""
