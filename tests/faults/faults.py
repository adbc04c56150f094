"""What a fault is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults.run import Run, Scale

Inject = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A fault with a name. ``inject`` lets it happen and heals it, at a moment of ``phase``; it raises FaultError when
    it did not come about. ``quick`` ones are part of `make test`."""

    name: str
    kind: str
    inject: Inject
    phase: str = "burst"
    quick: bool = False
    scale: Scale = field(default_factory=Scale)
    #: Whether the services' clocks must be such that they can be set.
    faked_clocks: bool = False
    #: Why it cannot be injected on this machine, or "".
    obstacle: Callable[[], str] = lambda: ""
