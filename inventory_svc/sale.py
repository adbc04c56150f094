"""The rules of a sale and its stock: states, legal transitions, what a request gets. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError, invalid_argument

#: Most units one purchase of any sale may ask for.
QUANTITY_MAX = 1_000
#: What `per_purchase_limit` 0 stands for, unless the sale has fewer units.
DEFAULT_PER_PURCHASE_LIMIT = 10


class SaleState(StrEnum):
    """Where a sale is in its life."""

    DRAFT = "DRAFT"
    SCHEDULED = "SCHEDULED"
    OPEN = "OPEN"
    PAUSED = "PAUSED"
    SOLD_OUT = "SOLD_OUT"
    CLOSED = "CLOSED"

    @property
    def is_open(self) -> bool:
        """Whether the gate takes buyers. A sale that is SOLD_OUT is open too: a unit may come back at any moment."""
        return self in (SaleState.OPEN, SaleState.SOLD_OUT)


class ReservationState(StrEnum):
    """Where a reservation is in its life. RESERVED -> SOLD -> RELEASED or RESERVED -> RELEASED; RELEASED is final.

    WAITING has no row among the reservations but one in the line (waitlist.py), and becomes RESERVED or RELEASED.
    """

    RESERVED = "RESERVED"
    SOLD = "SOLD"
    RELEASED = "RELEASED"
    WAITING = "WAITING"


_LEGAL_FROM = {
    SaleState.DRAFT: frozenset({SaleState.SCHEDULED}),
    SaleState.SCHEDULED: frozenset({SaleState.DRAFT}),
    SaleState.OPEN: frozenset({SaleState.DRAFT, SaleState.SCHEDULED, SaleState.PAUSED, SaleState.SOLD_OUT}),
    SaleState.PAUSED: frozenset({SaleState.OPEN, SaleState.SOLD_OUT}),
    SaleState.SOLD_OUT: frozenset({SaleState.OPEN, SaleState.PAUSED}),
    SaleState.CLOSED: frozenset(set(SaleState) - {SaleState.CLOSED}),
}

#: Who a change is noted under that nobody asked for: the sale's times, or its stock.
ACTOR_SCHEDULE, ACTOR_STOCK = "schedule", "stock"


@dataclass(frozen=True)
class SaleTerms:
    """What a sale is sold under. Only ``total`` ever changes, and only grows. Money in minor units."""

    display_name: str
    unit_price_minor: int
    currency_code: str
    total: int
    per_user_limit: int
    per_purchase_limit: int
    eligible_users_only: bool = False
    overtaking_allowed: bool = False


@dataclass(frozen=True)
class Times:
    """When a sale opens and closes by itself; None: not by itself."""

    open_time: datetime | None = None
    close_time: datetime | None = None


@dataclass(frozen=True)
class Sale:
    """A number of identical shares sold at one price. ``state_actor`` is who changed the state last, at
    ``state_time``."""

    sale_id: str
    terms: SaleTerms
    state: SaleState
    create_time: datetime
    times: Times = Times()
    state_time: datetime | None = None
    state_actor: str = ""


@dataclass(frozen=True)
class SaleChange:
    """Something that was done with a sale. ``from_state`` is None for its creation; ``total`` is that after it."""

    change_id: int
    change_time: datetime
    actor: str
    from_state: SaleState | None
    to_state: SaleState
    total: int


@dataclass(frozen=True)
class Stock:
    """A reading of one moment; available + reserved + sold = total unless the record it was read from is broken."""

    sale_id: str
    available: int
    reserved: int
    sold: int
    total: int
    epoch: int
    open: bool
    #: How often holders have changed under this epoch; 0 in the book.
    holder_changes: int = 0
    #: Requests in line; units that are available are theirs while there are any.
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """One buyer's wish for units, already validated; ``reservation_id`` and ``sale_id`` in canonical form.

    ``joins`` says whether it waits in line if need be; it is no part of the contents that a repetition must match.
    """

    reservation_id: str
    sale_id: str
    user_id: str
    request_id: str
    quantity: int
    joins: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Reservation:
    """Units set aside for, or sold to, one purchase. ``share_numbers`` ascend and are empty unless SOLD."""

    reservation_id: str
    sale_id: str
    user_id: str
    request_id: str
    quantity: int
    state: ReservationState
    share_numbers: tuple[int, ...]
    create_time: datetime
    update_time: datetime


def with_defaults(terms: SaleTerms) -> SaleTerms:
    """The terms with their limits of 0 replaced by what 0 stands for."""
    per_purchase = terms.per_purchase_limit or min(DEFAULT_PER_PURCHASE_LIMIT, terms.total)
    return SaleTerms(
        display_name=terms.display_name,
        unit_price_minor=terms.unit_price_minor,
        currency_code=terms.currency_code,
        total=terms.total,
        per_user_limit=terms.per_user_limit or per_purchase,
        per_purchase_limit=per_purchase,
        eligible_users_only=terms.eligible_users_only,
        overtaking_allowed=terms.overtaking_allowed,
    )


def changes_state(present: SaleState, wanted: SaleState) -> bool:
    """Whether a request to go to ``wanted`` changes anything. Raises SALE_STATE_CONFLICT when it is not legal.

    Opening a sale that is SOLD_OUT changes nothing: it is open, and only its stock makes it OPEN again.
    """
    if present == wanted or (present == SaleState.SOLD_OUT and wanted == SaleState.OPEN):
        return False
    require_legal(present, wanted)
    return True


def require_legal(present: SaleState, wanted: SaleState) -> None:
    """Raises SALE_STATE_CONFLICT unless a sale may go from one state to the other."""
    if present not in _LEGAL_FROM[wanted]:
        raise _conflict(present, f"a sale that is {present} cannot become {wanted}")


def _conflict(present: SaleState, message: str) -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_SALE_STATE_CONFLICT, message, metadata={"state": present.value})


def rescheduled(sale: Sale, asked: Times) -> tuple[SaleState, Times]:
    """The state and the times of a sale once it is scheduled as asked.

    Raises SALE_STATE_CONFLICT for any time of a sale that is CLOSED, and for another opening time than it had of one
    that has been opened.
    """
    if sale.state == SaleState.CLOSED:
        if asked != Times():
            raise _conflict(sale.state, "a sale that is CLOSED can no longer be scheduled")
        return sale.state, sale.times
    if sale.state in (SaleState.DRAFT, SaleState.SCHEDULED):
        return (SaleState.SCHEDULED if asked.open_time else SaleState.DRAFT), asked
    if asked.open_time not in (None, sale.times.open_time):
        raise _conflict(sale.state, "a sale that has been opened cannot be given another opening time")
    return sale.state, Times(sale.times.open_time, asked.close_time)


def raises_total(sale: Sale, total: int) -> bool:
    """Whether a request for this total changes anything. Raises INVALID_ARGUMENT when the total would shrink, and
    SALE_STATE_CONFLICT when the sale is CLOSED."""
    if total == sale.terms.total:
        return False
    if total < sale.terms.total:
        raise invalid_argument(("total", f"must be at least the present {sale.terms.total}, is {total}"))
    if sale.state == SaleState.CLOSED:
        raise _conflict(sale.state, "the total of a sale that is CLOSED cannot be raised")
    return True


def due_change(sale: Sale, now: datetime, *, all_owned: bool) -> tuple[SaleState, str] | None:
    """The change that is due by itself, and the actor it is noted under; None when there is none.

    ``now`` is the database's; ``all_owned`` tells whether every share number has an owner. The end goes before the
    beginning: a sale whose times have both passed unseen is never opened.
    """
    opens, closes = sale.times.open_time, sale.times.close_time
    if sale.state != SaleState.CLOSED and closes is not None and closes <= now:
        return SaleState.CLOSED, ACTOR_SCHEDULE
    if sale.state == SaleState.SCHEDULED and opens is not None and opens <= now:
        return SaleState.OPEN, ACTOR_SCHEDULE
    if sale.state.is_open and (sale.state == SaleState.SOLD_OUT) != all_owned:
        return (SaleState.SOLD_OUT if all_owned else SaleState.OPEN), ACTOR_STOCK
    return None


def concerns_gate(before: Sale, after: Sale) -> bool:
    """Whether the gate has to follow this change, and grants made before it must no longer count: it takes other people
    now, or none ever again, or there are more units."""
    ends = after.state == SaleState.CLOSED != before.state
    return ends or before.state.is_open != after.state.is_open or before.terms.total != after.terms.total


def sale_not_found(sale_id: str) -> DomainError:
    """The error for a sale that does not exist."""
    return DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND, metadata={"sale_id": sale_id})


def recalibrating(sale_id: str) -> DomainError:
    """The error for a sale whose gate is not current."""
    return DomainError(ErrorReason.ERROR_REASON_STOCK_RECALIBRATING, metadata={"sale_id": sale_id})


def reason_of_stored(wish: Wish, stored: Wish, state: ReservationState) -> int:
    """What the row stored under a wish's id makes of the wish: 0 when it holds units for the same contents."""
    if stored != wish:
        return ErrorReason.ERROR_REASON_REQUEST_ID_REUSED
    if state == ReservationState.RELEASED:
        return ErrorReason.ERROR_REASON_RESERVATION_RELEASED
    return ErrorReason.ERROR_REASON_UNSPECIFIED
