"""The rules of a sale and its stock: states, legal transitions, what a request gets. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError

#: Most units one purchase of any sale may ask for.
QUANTITY_MAX = 1_000
#: What `per_purchase_limit` 0 stands for, unless the sale has fewer units.
DEFAULT_PER_PURCHASE_LIMIT = 10


class SaleState(StrEnum):
    """Where a sale is in its life."""

    DRAFT = "DRAFT"
    OPEN = "OPEN"
    PAUSED = "PAUSED"
    CLOSED = "CLOSED"


class ReservationState(StrEnum):
    """Where a reservation is in its life. RESERVED -> SOLD -> RELEASED or RESERVED -> RELEASED; RELEASED is final.

    WAITING has no row among the reservations but one in the line (waitlist.py), and becomes RESERVED or RELEASED.
    """

    RESERVED = "RESERVED"
    SOLD = "SOLD"
    RELEASED = "RELEASED"
    WAITING = "WAITING"


_LEGAL_FROM = {
    SaleState.OPEN: frozenset({SaleState.DRAFT, SaleState.PAUSED}),
    SaleState.PAUSED: frozenset({SaleState.OPEN}),
    SaleState.CLOSED: frozenset({SaleState.DRAFT, SaleState.OPEN, SaleState.PAUSED}),
}


@dataclass(frozen=True)
class SaleTerms:
    """What a sale was created with; never changes. Money in minor units."""

    display_name: str
    unit_price_minor: int
    currency_code: str
    total: int
    per_user_limit: int
    per_purchase_limit: int


@dataclass(frozen=True)
class Sale:
    """A number of identical shares sold at one price."""

    sale_id: str
    terms: SaleTerms
    state: SaleState
    create_time: datetime


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
    )


def changes_state(present: SaleState, wanted: SaleState) -> bool:
    """Whether going to ``wanted`` changes anything. Raises SALE_STATE_CONFLICT when it is not legal."""
    if present == wanted:
        return False
    if present not in _LEGAL_FROM[wanted]:
        raise DomainError(
            ErrorReason.ERROR_REASON_SALE_STATE_CONFLICT,
            f"a sale that is {present} cannot become {wanted}",
            metadata={"state": present.value},
        )
    return True


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
