"""The promises I1 to I7 as plain functions over what an audit saw. Pure.

Purchases, reservations and holds live in three databases and are read one after the other while the sale goes on, so a
single look can show a difference that never was. Three things keep the audit honest in the middle of a sale:

* Purchases are read first. A final purchase never changes again, so what it demands of its reservation and its hold
  binds in every look.
* What a purchase, reservation or hold may still be doing (settling, cleaning up) counts only once it is older than any
  such work lives.
* Gate against book, and book against the list of reservations, are compared only at rest: nothing reserved, held or
  unfinished, and the gate's reading the same before and after.

What is left is suspected, not found: ``Violation.patience_s`` tells for how long it must stay in every further look.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.audit.data import Hold, Look, Purchase, Reservation, SaleLook, Stock
from mesh.identity import purchase_id

#: Age from which nothing may be left open by a purchase that ended, or without a purchase, seconds: the sweeper's and
#: the reaper's longest way, several times over.
CLEANUP_S = 60.0
#: Age from which an unfinished purchase is stuck, seconds, on top of the time the settlement queue needs for them all.
UNFINISHED_S = 60.0
#: For how long a unit may belong to nobody in the gate, seconds: the reaper waits longer than any call lives before it
#: gives back a grant that never reached SQL.
LIMBO_S = 40.0
#: For how long a sale's gate may be closed by recalibration, seconds.
GATE_AWAY_S = 15.0

UNFINISHED = frozenset({"RESERVED", "SETTLING"})
ENDED_WITHOUT = frozenset({"FAILED", "CANCELLED"})


@dataclass(frozen=True)
class Violation:
    """A promise that looks broken."""

    promise: str
    """I1 to I7."""
    code: str
    """What kind of breach, for comparing looks."""
    subject: str
    """Which sale, purchase, account or transfer."""
    detail: str
    patience_s: float = 1.0
    """It counts once it has been seen in every look for so many seconds."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The same in two looks if it is the same breach of the same thing."""
        return (self.promise, self.code, self.subject)

    def __str__(self) -> str:
        return f"{self.promise} {self.subject}: {self.detail}"


def check(look: Look) -> list[Violation]:
    """Everything that looks broken."""
    checks: tuple[Callable[[Look], list[Violation]], ...] = (
        check_shares,
        check_outcomes,
        check_strays,
        check_money,
        check_progress,
        check_identity,
        check_stock,
        check_sellable,
    )
    return [violation for one in checks for violation in one(look)]


def persisting(suspected: Iterable[Violation], seen_again: Iterable[Violation]) -> list[Violation]:
    """Those of ``suspected`` that the next look shows too."""
    keys = {violation.key for violation in seen_again}
    return [violation for violation in suspected if violation.key in keys]


def check_shares(look: Look) -> list[Violation]:
    """I1: never more sold than there are, each number 1 to total with one owner. Binds always."""
    found = []
    for sale in look.sales:
        sold = sold_reservations(sale)
        units = sum(item.quantity for item in sold)
        if units > sale.total:
            found.append(Violation("I1", "oversold", sale.sale_id, f"{units} units sold of {sale.total}"))
        owners = Counter(number for item in sold for number in item.share_numbers)
        found += _wrong_numbers(sale, owners, "reservations")
    by_sale: dict[str, Counter[int]] = {}
    for purchase in look.purchases:
        if purchase.state == "CONFIRMED":
            by_sale.setdefault(purchase.sale_id, Counter()).update(purchase.share_numbers)
    for sale in look.sales:
        found += _wrong_numbers(sale, by_sale.get(sale.sale_id, Counter()), "purchases")
    return found


def sold_reservations(sale: SaleLook) -> list[Reservation]:
    """The reservations that own shares."""
    return [item for item in sale.reservations if item.state == "SOLD"]


def _wrong_numbers(sale: SaleLook, owners: "Counter[int]", source: str) -> list[Violation]:
    found = []
    for number, count in owners.items():
        subject = f"{sale.sale_id} share {number}"
        if not 1 <= number <= sale.total:
            found.append(Violation("I1", f"range {source}", subject, f"no such share, numbers end at {sale.total}"))
        if count > 1:
            found.append(Violation("I1", f"owners {source}", subject, f"owned by {count} {source}"))
    return found


def check_outcomes(look: Look) -> list[Violation]:
    """I2, seen from the purchases: shares and one capture, or neither. Binds always for final purchases."""
    reservations = {item.reservation_id: item for sale in look.sales for item in sale.reservations}
    holds = {item.hold_id: item for item in look.holds}
    booked: dict[str, list[str]] = {}
    paid: dict[str, int] = {}
    for sale in look.sales:
        for entry in sale.entries:
            booked.setdefault(entry.transfer_id, []).append(entry.kind)
            paid[entry.transfer_id] = paid.get(entry.transfer_id, 0) + entry.amount_minor
    sales = {sale.sale_id: sale for sale in look.sales}
    found = []
    for purchase in look.purchases:
        key = purchase.purchase_id
        reservation, hold = reservations.get(key), holds.get(key)
        if purchase.sale_id not in sales:
            found.append(Violation("I2", "sale", key, f"of an unknown sale {purchase.sale_id}"))
        elif purchase.state == "CONFIRMED":
            reasons = [
                *_wrong_shares(purchase, reservation),
                *_wrong_hold(purchase, hold, sales[purchase.sale_id]),
                *_wrong_booking(purchase, booked.get(key, []), paid.get(key, 0)),
            ]
            found += [Violation("I2", code, key, f"CONFIRMED, but {text}") for code, text in reasons]
        elif purchase.state in ENDED_WITHOUT:
            old = look.now_s - purchase.update_s > CLEANUP_S
            found += _left_open(purchase, reservation, hold, paid.get(key, 0), old)
    return found


def _wrong_shares(purchase: Purchase, reservation: Reservation | None) -> list[tuple[str, str]]:
    if reservation is None:
        return [("no reservation", "there is no reservation")]
    found = []
    if reservation.state != "SOLD":
        found.append(("not sold", f"its reservation is {reservation.state}"))
    elif reservation.share_numbers != purchase.share_numbers:
        found.append(
            ("numbers", f"it names shares {_short(purchase.share_numbers)}, owns {_short(reservation.share_numbers)}")
        )
    if len(purchase.share_numbers) != purchase.quantity:
        found.append(("quantity", f"{len(purchase.share_numbers)} shares instead of {purchase.quantity}"))
    return found


def _wrong_hold(purchase: Purchase, hold: Hold | None, sale: SaleLook) -> list[tuple[str, str]]:
    price = sale.unit_price_minor * purchase.quantity
    found = []
    if (purchase.amount_minor, purchase.currency_code) != (price, sale.currency_code):
        found.append(("price", f"it costs {purchase.amount_minor} instead of {price}"))
    if hold is None:
        return [*found, ("no hold", "there is no hold")]
    if hold.state != "CAPTURED":
        found.append(("not captured", f"its hold is {hold.state}"))
    wanted = (purchase.user_id, purchase.amount_minor, purchase.currency_code, purchase.sale_id)
    if (hold.user_id, hold.amount_minor, hold.currency_code, hold.beneficiary) != wanted:
        found.append(("other hold", f"its hold is {hold.amount_minor} of {hold.user_id} for {hold.beneficiary}"))
    return found


def _wrong_booking(purchase: Purchase, booked: list[str], paid: int) -> list[tuple[str, str]]:
    if booked == ["CAPTURE"] and paid == purchase.amount_minor:
        return []
    kinds = " and ".join(booked) or "no entries"
    return [("booking", f"the sale's account has {kinds} of {paid} for its {purchase.amount_minor}")]


def _left_open(
    purchase: Purchase, reservation: Reservation | None, hold: Hold | None, paid: int, old: bool
) -> list[Violation]:
    key, found = purchase.purchase_id, []
    if hold is not None and (hold.state == "CAPTURED" or (hold.state == "HELD" and old)):
        found.append(Violation("I2", "money kept", key, f"{purchase.state}, but its hold is {hold.state}"))
    if paid != 0:
        found.append(Violation("I2", "money booked", key, f"{purchase.state}, but the sale's account keeps {paid}"))
    if reservation is not None and reservation.state in ("SOLD", "RESERVED") and old:
        found.append(
            Violation("I2", "shares kept", key, f"{purchase.state}, but its reservation is {reservation.state}")
        )
    return found


def check_strays(look: Look) -> list[Violation]:
    """I2 and I4, seen from the other side: sold shares and money set aside that no purchase knows of. Binds always."""
    known = {item.purchase_id for item in look.purchases}
    found = []
    for sale in look.sales:
        for item in sale.reservations:
            if item.reservation_id in known:
                continue
            if item.state == "SOLD":
                found.append(Violation("I2", "sold to none", item.reservation_id, "shares sold without a purchase"))
            elif item.state == "RESERVED" and look.now_s - item.create_s > CLEANUP_S:
                found.append(Violation("I4", "stray", item.reservation_id, "units reserved without a purchase"))
    for hold in look.holds:
        if hold.hold_id not in known and hold.state in ("HELD", "CAPTURED"):
            found.append(Violation("I2", "stray hold", hold.hold_id, f"a hold {hold.state} without a purchase"))
    captured = {item.hold_id for item in look.holds if item.state in ("CAPTURED", "REVERSED")}
    for sale in look.sales:
        for entry in sale.entries:
            if entry.kind == "CAPTURE" and entry.transfer_id not in captured:
                found.append(Violation("I2", "stray booking", entry.transfer_id, "booked without a captured hold"))
    return found


def check_money(look: Look) -> list[Violation]:
    """I3: entries sum to zero, 0 <= held <= balance. Binds always: the sums are of one moment."""
    found = []
    for totals in look.totals:
        code = totals.currency_code
        if totals.entries_sum_minor != 0:
            found.append(Violation("I3", "sum", code, f"entries sum to {totals.entries_sum_minor}, not 0"))
        if totals.balances_sum_minor != totals.customer_entries_sum_minor:
            found.append(
                Violation(
                    "I3",
                    "balances",
                    code,
                    f"balances sum to {totals.balances_sum_minor}, entries to {totals.customer_entries_sum_minor}",
                )
            )
        if totals.held_sum_minor != totals.open_holds_sum_minor:
            text = f"{totals.held_sum_minor} held on accounts, {totals.open_holds_sum_minor} by open holds"
            found.append(Violation("I3", "held", code, text))
    for account in look.accounts:
        if not 0 <= account.held_minor <= account.balance_minor:
            text = f"held {account.held_minor} of {account.balance_minor}"
            found.append(Violation("I3", "bounds", f"{account.user_id} {account.currency_code}", text))
    found += [Violation("I3", "account", name, "differs from its holds or entries") for name in look.wrong_accounts]
    found += [Violation("I3", "transfer", name, "does not balance or match its hold") for name in look.wrong_transfers]
    return found


def check_progress(look: Look) -> list[Violation]:
    """I4: nothing accepted stays unfinished. PARKED waits for an operator and is none. Binds by age."""
    unfinished = [item for item in look.purchases if item.state in UNFINISHED]
    patience_s = UNFINISHED_S + len(unfinished) / look.settlement_rate_per_s
    return [
        Violation("I4", "stuck", item.purchase_id, f"{item.state} for {look.now_s - item.update_s:.0f} s")
        for item in unfinished
        if look.now_s - item.update_s > patience_s
    ]


def check_identity(look: Look) -> list[Violation]:
    """I5: one id for one (user, sale, request), the same in every service. Binds always."""
    found, requests = [], Counter[tuple[str, str, str]]()
    ids = Counter(item.purchase_id for item in look.purchases)
    for key, count in ids.items():
        if count > 1:
            found.append(Violation("I5", "listed twice", key, f"listed {count} times"))
    purchases = {item.purchase_id: item for item in look.purchases}
    for item in purchases.values():
        requests[item.user_id, item.sale_id, item.request_id] += 1
        if str(purchase_id(item.user_id, item.sale_id, item.request_id)) != item.purchase_id:
            found.append(Violation("I5", "id", item.purchase_id, "is not the id of its user, sale and request"))
    for (user, sale_id, request), count in requests.items():
        if count > 1:
            found.append(Violation("I5", "request twice", f"{user} {sale_id} {request}", f"{count} purchases"))
    for sale in look.sales:
        for reservation in sale.reservations:
            found += _other_contents(reservation, purchases.get(reservation.reservation_id))
    return found


def _other_contents(reservation: Reservation, purchase: Purchase | None) -> list[Violation]:
    key = reservation.reservation_id
    named = (reservation.user_id, reservation.sale_id, reservation.request_id)
    if purchase is None:
        if str(purchase_id(*named)) == key:
            return []
        return [Violation("I5", "reservation id", key, "is not the id of its user, sale and request")]
    if (*named, reservation.quantity) == (purchase.user_id, purchase.sale_id, purchase.request_id, purchase.quantity):
        return []
    return [Violation("I5", "contents", key, "the reservation's contents differ from the purchase's")]


def sales_in_flight(look: Look) -> frozenset[str]:
    """Sales of which SQL knows something unfinished."""
    reserved = {sale.sale_id for sale in look.sales if sale.book.reserved != 0}
    reserved |= {item.sale_id for sale in look.sales for item in sale.reservations if item.state == "RESERVED"}
    unfinished = {item.sale_id for item in look.purchases if item.state in UNFINISHED}
    return frozenset(reserved | unfinished | {item.beneficiary for item in look.holds if item.state == "HELD"})


def is_at_rest(sale: SaleLook, in_flight: frozenset[str]) -> bool:
    """Whether nothing of the sale was in flight while it was looked at."""
    gate = sale.gate_after
    return gate is not None and gate == sale.gate_before and gate.reserved == 0 and sale.sale_id not in in_flight


def _wrong_reading(sale: SaleLook, source: str, reading: Stock) -> list[Violation]:
    found = []
    counts = (reading.available, reading.reserved, reading.sold)
    if min(counts) < 0:
        found.append(Violation("I6", f"negative {source}", sale.sale_id, f"the {source} reads {reading}"))
    if sum(counts) != reading.total or reading.total != sale.total:
        text = (
            f"the {source} reads {' + '.join(map(str, counts))} = {sum(counts)}, total {reading.total} of {sale.total}"
        )
        found.append(Violation("I6", f"sum {source}", sale.sale_id, text))
    return found


def check_stock(look: Look) -> list[Violation]:
    """I6: every reading adds up (always); gate, book and the list of reservations agree (only at rest)."""
    found: list[Violation] = []
    in_flight = sales_in_flight(look)
    for sale in look.sales:
        readings = (("gate", sale.gate_before), ("gate", sale.gate_after), ("book", sale.book))
        broken = [item for source, reading in readings if reading for item in _wrong_reading(sale, source, reading)]
        found += {item.key: item for item in broken}.values()
        if sale.gate_after is None or not is_at_rest(sale, in_flight):
            continue
        gate, book = sale.gate_after, sale.book
        if gate[:4] != book[:4]:
            found.append(Violation("I6", "gate and book", sale.sale_id, f"gate {gate[:4]}, book {book[:4]}"))
        units = sum(item.quantity for item in sold_reservations(sale))
        if units != book.sold:
            found.append(Violation("I6", "book and list", sale.sale_id, f"{units} units sold, book says {book.sold}"))
    return found


def check_sellable(look: Look) -> list[Violation]:
    """I7: no unit is lost to everybody. Binds once SQL knows of nothing in flight, and given time for the reaper."""
    found = []
    in_flight = sales_in_flight(look)
    for sale in look.sales:
        gate = sale.gate_after
        if gate is None:
            if sale.state in ("OPEN", "SOLD_OUT", "PAUSED"):
                found.append(Violation("I7", "no gate", sale.sale_id, "the gate gives no reading", GATE_AWAY_S))
            continue
        if sale.state in ("OPEN", "SOLD_OUT") and not gate.open:
            text = f"{sale.state}, but its gate takes nobody"
            found.append(Violation("I7", "gate shut", sale.sale_id, text, GATE_AWAY_S))
        if gate.reserved != 0 and sale.sale_id not in in_flight:
            text = f"{gate.reserved} units reserved in the gate and nothing in flight"
            found.append(Violation("I7", "limbo", sale.sale_id, text, LIMBO_S))
    return found


def _short(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown}, ... ({len(numbers)})" if len(numbers) > 5 else shown or "none"
