"""The promises as rules over one round of readings, and over what changed since the round before. No I/O.

Each rule yields what it found broken in words. They hold at every moment, in the middle of any fault: whatever a rule
compares was read in such an order that the later reading must show what the earlier one claims (books.Snapshot).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from purchase_svc.purchase import PurchaseState, may_become
from tests.faults.books import Snapshot
from tests.faults.history import Key

#: States that stay as they are as long as nobody asks for a refund.
_FINAL = ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDED")


def _reachable() -> dict[PurchaseState, frozenset[PurchaseState]]:
    """Where a purchase can have come to by legal steps between two looks, however many it took."""
    found = {each: {step for step in PurchaseState if may_become(each, step)} for each in PurchaseState}
    for _ in PurchaseState:
        for steps in found.values():
            steps |= {later for step in tuple(steps) for later in found[step]}
    return {each: frozenset(steps) for each, steps in found.items()}


_REACHABLE = _reachable()


@dataclass(frozen=True)
class Round:
    """What the rules look at: readings, those of the round before, and what buyers had been told before them."""

    now: Snapshot
    before: Snapshot | None
    accepted: Mapping[Key, str]
    total: int


def owners_are_unique(look: Round) -> Iterator[str]:
    """I1: numbers 1..total, one owner each, no more units out than there are."""
    numbers = [number for unit in look.now.reservations.values() for number in unit.share_numbers]
    if len(numbers) != len(set(numbers)) or not all(1 <= number <= look.total for number in numbers):
        yield "a share number has two owners or is none of the sale's"
    taken = sum(unit.quantity for unit in look.now.reservations.values() if unit.state in ("RESERVED", "SOLD"))
    if taken > look.total:
        yield f"{taken} units are reserved or sold of {look.total}"


def gate_adds_up(look: Round) -> Iterator[str]:
    """I6: the gate's three counts sum to the total, and none is negative."""
    gate = look.now.gate
    if gate.get("serving") == "1":
        counts = [int(gate[name]) for name in ("available", "reserved", "sold")]
        if min(counts) < 0 or sum(counts) != int(gate["total"]):
            yield f"the gate says {counts} of {gate['total']}"


def money_adds_up(look: Round) -> Iterator[str]:
    """I3: entries sum to zero, every account holds what it may, every capture is booked once."""
    now = look.now
    if now.ledger_sum or now.bad_accounts or now.bad_bookings:
        yield f"entries sum to {now.ledger_sum}, {now.bad_accounts} accounts and {now.bad_bookings} bookings are wrong"


def captured_own_their_shares(look: Round) -> Iterator[str]:
    """I2: the share is assigned before the money is captured, and given back after it, so whoever has paid owns
    shares."""
    for key, state in look.now.holds.items():
        unit = look.now.reservations.get(key)
        paid = state == "CAPTURED" and look.now.holds_after.get(key) == "CAPTURED"
        if paid and (unit is None or unit.state != "SOLD" or len(unit.share_numbers) != unit.quantity):
            yield f"{key} has paid and has no shares: {unit}"


def confirmed_have_both(look: Round) -> Iterator[str]:
    """I2: a confirmed purchase has its shares and has been paid, as long as nobody asks for a refund."""
    for key, row in look.now.purchases.items():
        later = look.now.purchases_after.get(key)
        if row.state == "CONFIRMED" and later is not None and later.state == "CONFIRMED":
            unit = look.now.reservations.get(key)
            if look.now.holds.get(key) != "CAPTURED" or unit is None or unit.share_numbers != row.share_numbers:
                yield f"{key} is confirmed with hold {look.now.holds.get(key)} and {unit}"


def ended_have_neither(look: Round) -> Iterator[str]:
    """I2: a failed or cancelled purchase is not charged and owns nothing, and leaves nothing open."""
    for key, row in look.now.purchases.items():
        if row.state in ("FAILED", "CANCELLED"):
            hold, unit = look.now.holds.get(key), look.now.reservations.get(key)
            if hold == "CAPTURED" or (unit is not None and unit.state == "SOLD"):
                yield f"{key} is {row.state} with hold {hold} and {unit}"
            elif not row.cleanup_pending and (hold == "HELD" or (unit is not None and unit.state == "RESERVED")):
                yield f"{key} is {row.state} and cleaned up with hold {hold} and {unit}"


def refunded_have_their_money(look: Round) -> Iterator[str]:
    """I2 and I3: a refunded purchase has its money back once and owns nothing; nobody else's was given back."""
    now = look.now
    for key, row in now.purchases.items():
        hold, unit = now.holds.get(key), now.reservations.get(key)
        if row.state == "REFUNDED":
            given_back = hold == "REVERSED" and key in now.reversed_bookings
            if not given_back or unit is None or unit.state != "RELEASED" or row.share_numbers:
                booked = "a reversal" if key in now.reversed_bookings else "no reversal"
                yield f"{key} is refunded with hold {hold}, {booked} and {unit}"
        elif row.state == "REFUNDING" and hold not in ("CAPTURED", "REVERSED"):
            yield f"{key} is being refunded with hold {hold}"
    for key, hold in now.holds.items():
        later = now.purchases_after.get(key)
        if hold == "REVERSED" and (later is None or later.state not in ("REFUNDING", "REFUNDED")):
            yield f"{key} has its money back and is {later.state if later else 'no purchase'}"


def waitlisted_have_nothing(look: Round) -> Iterator[str]:
    """I2: whoever was waiting all the while has neither shares nor paid."""
    for key, row in look.now.purchases.items():
        later = look.now.purchases_after.get(key)
        if row.state == "WAITLISTED" and later is not None and later.state == "WAITLISTED":
            unit, hold = look.now.reservations.get(key), look.now.holds.get(key)
            if hold is not None or (unit is not None and unit.state == "SOLD"):
                yield f"{key} waits in line with hold {hold} and {unit}"


def line_is_served_in_order(look: Round) -> Iterator[str]:
    """I8: whoever is promoted had nobody before it in line. The faults' sales allow no overtaking."""
    latest, by_whom = 0.0, ""
    tickets, decisions = set(), set()
    for key, place in sorted(look.now.line.items(), key=lambda item: item[1].ticket):
        if place.state == "PROMOTED" and latest > place.decision:
            yield f"{key} was promoted with ticket {place.ticket} before {by_whom}"
        decided = float("inf") if place.state == "WAITING" else float(place.decision)
        if decided > latest:
            latest, by_whom = decided, f"{key} with {place.ticket}, {place.state}"
        if place.ticket in tickets or (place.state != "WAITING" and place.decision in decisions):
            yield f"{key} has a ticket or a decision that another has: {place}"
        tickets.add(place.ticket)
        decisions.add(place.decision)


def places_in_line_are_kept(look: Round) -> Iterator[str]:
    """I8: a place in line is never lost or changed, and what has been decided stays: who left is never promoted."""
    for key, earlier in (look.before.line if look.before else {}).items():
        later = look.now.line.get(key)
        if later is None or (earlier.ticket, earlier.quantity) != (later.ticket, later.quantity):
            yield f"the place of {key} was {earlier} and is {later}"
        elif earlier.state != "WAITING" and later != earlier:
            yield f"{key} was {earlier.state} in line and is {later.state}"


def line_and_units_agree(look: Round) -> Iterator[str]:
    """I8: whoever was promoted has units or had them; whoever left the line never has any, nor who still waits."""
    for key, place in look.now.line.items():
        unit = look.now.reservations.get(key)
        if place.state == "PROMOTED" and unit is None:
            yield f"{key} was promoted and has no reservation"
        elif place.state in ("LEFT", "CLOSED") and (unit is None or unit.state != "RELEASED"):
            yield f"{key} is {place.state} with {unit}"
        elif place.state == "WAITING" and look.before and key in look.before.reservations:
            yield f"{key} waits in line and had {look.before.reservations[key]}"


def accepted_are_durable(look: Round) -> Iterator[str]:
    """I4: what was answered 202 is in SQL."""
    for key, purchase_id in look.accepted.items():
        row = look.now.purchases.get(purchase_id)
        if row is None:
            yield f"{key} was told 202 for {purchase_id}, which is not there"
        elif (row.user_id, row.request_id) != key:
            yield f"{key} was told 202 for {purchase_id}, which is another's"


def steps_are_legal(look: Round) -> Iterator[str]:
    """I5: a purchase takes legal steps only and never vanishes; what is final stays as it is."""
    for key, earlier in (look.before.purchases if look.before else {}).items():
        later = look.now.purchases.get(key)
        if later is None:
            yield f"{key} has vanished"
        elif later.state != earlier.state:
            if PurchaseState(later.state) not in _REACHABLE[PurchaseState(earlier.state)]:
                yield f"{key} went from {earlier.state} to {later.state}"
        elif earlier.state in _FINAL and (later.share_numbers, later.reason) != (earlier.share_numbers, earlier.reason):
            yield f"{key} was final and has changed"


def reservations_never_return(look: Round) -> Iterator[str]:
    """I5: a released reservation stays released, a refused hold stays so, and a captured one but for its reversal."""
    if look.before is None:
        return
    for key, unit in look.before.reservations.items():
        later = look.now.reservations.get(key)
        if later is None or (unit.state == "RELEASED" and later.state != "RELEASED"):
            yield f"reservation {key} went from {unit.state} to {later}"
    for key, state in look.before.holds.items():
        later_hold = look.now.holds.get(key)
        if state != "HELD" and later_hold != state and (state, later_hold) != ("CAPTURED", "REVERSED"):
            yield f"hold {key} went from {state} to {look.now.holds.get(key)}"


RULES: tuple[tuple[str, Callable[[Round], Iterable[str]]], ...] = (
    ("I1", owners_are_unique),
    ("I6", gate_adds_up),
    ("I3", money_adds_up),
    ("I2", captured_own_their_shares),
    ("I2", confirmed_have_both),
    ("I2", ended_have_neither),
    ("I2", refunded_have_their_money),
    ("I2", waitlisted_have_nothing),
    ("I8", line_is_served_in_order),
    ("I8", places_in_line_are_kept),
    ("I8", line_and_units_agree),
    ("I4", accepted_are_durable),
    ("I5", steps_are_legal),
    ("I5", reservations_never_return),
)
