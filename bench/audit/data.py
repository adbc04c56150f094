"""What an audit looks at: plain records, as the services reported them."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Purchase(NamedTuple):
    """A purchase of the Purchase Service."""

    purchase_id: str
    user_id: str
    sale_id: str
    request_id: str
    quantity: int
    amount_minor: int
    currency_code: str
    state: str
    """WAITLISTED, RESERVED, SETTLING, CONFIRMED, FAILED, CANCELLED, PARKED, REFUNDING or REFUNDED."""
    reason: str
    share_numbers: tuple[int, ...]
    update_s: float
    """When the state last changed, seconds since 1970."""


class Reservation(NamedTuple):
    """A reservation of the Inventory Service."""

    reservation_id: str
    user_id: str
    sale_id: str
    request_id: str
    quantity: int
    state: str
    """RESERVED, SOLD or RELEASED."""
    share_numbers: tuple[int, ...]
    create_s: float


class InLine(NamedTuple):
    """A request that joined a sale's waitlist."""

    reservation_id: str
    user_id: str
    request_id: str
    quantity: int
    ticket: int
    state: str
    """WAITING, PROMOTED, LEFT or CLOSED."""
    decision_number: int
    """Of two of a sale the one with more was decided later; 0 while it waits."""
    end_s: float
    """When it was decided, seconds since 1970; 0 while it waits."""
    told_place: int | None = None
    """Its place in line as it was told after the whole line had been read; None: it was not asked for."""


class Hold(NamedTuple):
    """A hold of the Balance Service."""

    hold_id: str
    user_id: str
    amount_minor: int
    currency_code: str
    beneficiary: str
    state: str
    """HELD, CAPTURED, RELEASED, EXPIRED, REFUSED or REVERSED."""
    create_s: float


class Entry(NamedTuple):
    """An entry of a sale's account in the ledger."""

    transfer_id: str
    amount_minor: int
    currency_code: str
    kind: str
    """DEPOSIT, WITHDRAWAL, CAPTURE or REVERSAL."""


class Account(NamedTuple):
    """A customer's account."""

    user_id: str
    currency_code: str
    balance_minor: int
    held_minor: int


class Stock(NamedTuple):
    """A stock reading."""

    available: int
    reserved: int
    sold: int
    total: int
    open: bool = True
    waiting: int = 0


class Totals(NamedTuple):
    """The Balance Service's own sums of one currency, all of one moment."""

    currency_code: str
    entries_sum_minor: int
    balances_sum_minor: int
    customer_entries_sum_minor: int
    held_sum_minor: int
    open_holds_sum_minor: int


@dataclass(frozen=True)
class SaleLook:
    """What was seen of one sale."""

    sale_id: str
    name: str
    state: str
    unit_price_minor: int
    currency_code: str
    total: int
    gate_before: Stock | None
    """The gate's reading before everything else of the sale was read; None when it gave none within the bound."""
    gate_after: Stock | None
    book: Stock
    reservations: tuple[Reservation, ...]
    entries: tuple[Entry, ...]
    line: tuple[InLine, ...] = ()
    """By ticket. Read before the reservations."""
    overtaking_allowed: bool = False


@dataclass(frozen=True)
class Look:
    """What was seen of the whole system. Purchases were read before reservations, holds and entries."""

    now_s: float
    sales: tuple[SaleLook, ...]
    purchases: tuple[Purchase, ...]
    holds: tuple[Hold, ...]
    accounts: tuple[Account, ...]
    totals: tuple[Totals, ...]
    wrong_accounts: tuple[str, ...]
    wrong_transfers: tuple[str, ...]
    settlement_rate_per_s: float = 500.0
    notes: tuple[str, ...] = field(default=())
