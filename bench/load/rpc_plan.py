"""What the gRPC load generator is told and what it tells."""

import msgspec


class RpcPlan(msgspec.Struct, frozen=True):
    """Calls of one kind, as fast as so many at once allow."""

    target: str
    """gRPC target of the service."""
    kind: str
    """"create": unary CreatePurchase; "batch": BatchCreatePurchases; "balance": GetBalance."""
    users: list[str]
    sale_id: str = ""
    run: str = ""
    """Makes the request ids of this run unique."""
    at_once: int = 100
    """Calls under way."""
    batch: int = 250
    """Purchases of one BatchCreatePurchases."""
    seconds: float = 4.0
    """How long calls are begun."""
    timeout_s: float = 5.0
    """Deadline of a call."""


class RpcResults(msgspec.Struct, frozen=True):
    """How it went."""

    wall_s: float
    """From the first call to the last answer."""
    answered: int
    """Purchases, or balances, that were answered as asked."""
    refused: dict[str, int]
    """The others, by reason or status code."""
    p50_ms: float
    p99_ms: float
    """Times of calls."""
    cpu_s: float
    """Processor time that the generator took."""
