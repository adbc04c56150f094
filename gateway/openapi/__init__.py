"""The HTTP contract as an OpenAPI 3.1 document."""
