"""What the gRPC load generator is told and what it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from stack.peers import identity_for, peer_files


class RpcPlan(msgspec.Struct, frozen=True):
    """Calls of one kind, as fast as so many at once allow."""

    target: str
    """gRPC target of the service."""
    peer: dict[str, str]
    """Certificate files to call with (PeerFiles' fields); empty: in the clear."""
    service: str
    """The kind of service at the target, which it must prove where there are certificates."""
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

    @classmethod
    def of(cls, environment: Mapping[str, str], kind: str, users: list[str], **rest: Any) -> RpcPlan:
        """A plan for a stack with this environment, whose calls are made by whoever may make them."""
        service, method = _CALLS[kind]
        files = peer_files(environment, identity_for(method))
        peer = {name: str(path) for name, path in dataclasses.asdict(files).items()} if files else {}
        return cls(environment[f"{service.upper()}_TARGET"], peer, service, kind, users, **rest)


#: Kind of a plan -> service and method that it calls.
_CALLS = {
    "create": ("purchase", "CreatePurchase"),
    "batch": ("purchase", "BatchCreatePurchases"),
    "balance": ("balance", "GetBalance"),
}


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
