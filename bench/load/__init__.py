"""The load generator: a process of its own that buys over many connections, and what it tells."""
