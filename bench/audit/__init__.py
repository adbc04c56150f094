"""The audit: what the services say of all sales, against the promises."""
