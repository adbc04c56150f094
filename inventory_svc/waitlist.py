"""The rules of a sale's line: who waits, what becomes of them, whom some units serve. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

#: States of a sale in which its line moves. Also SOLD_OUT: a unit may come back at any moment.
SERVING_STATES = frozenset({"OPEN", "SOLD_OUT"})
#: More units than any sale has.
UNITS_MAX = 1_000_000_000


class WaitlistState(StrEnum):
    """What has become of a request that joined the line. All but WAITING are final."""

    WAITING = "WAITING"
    PROMOTED = "PROMOTED"
    LEFT = "LEFT"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody in line: units wanted, and the number in the order of joining."""

    reservation_id: str
    quantity: int
    ticket: int


@dataclass(frozen=True)
class WaitlistEntry:
    """A request that joined the line; ``end_time`` is None and ``decision_number`` 0 while it waits."""

    reservation_id: str
    sale_id: str
    user_id: str
    request_id: str
    quantity: int
    ticket: int
    state: WaitlistState
    join_time: datetime
    end_time: datetime | None
    decision_number: int


@dataclass(frozen=True, slots=True)
class Place:
    """A place in line, 1 for the next to be served, and the units that those before it wait for."""

    position: int
    units_ahead: int


@dataclass(frozen=True)
class Line:
    """A sale's line: the sale's state, and whether a smaller request may be served before the first in line."""

    sale_id: str
    sale_state: str
    overtaking_allowed: bool


def served_by(units: int, waiters: Sequence[Waiter], *, overtaking_allowed: bool) -> tuple[list[Waiter], int, bool]:
    """Whom some units serve of those who wait, given in the order of the line.

    Answers them, the units left, and whether somebody for whom they are too few stops the line.
    """
    served: list[Waiter] = []
    for waiter in waiters:
        if waiter.quantity <= units:
            served.append(waiter)
            units -= waiter.quantity
        elif not overtaking_allowed:
            return served, units, True
    return served, units, False
