"""Load generator, sale runner, audit and small hand tools. Sees the system only from outside: HTTP and RPCs."""
