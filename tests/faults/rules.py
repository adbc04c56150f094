"""The promises as rules over one round of readings, and over what changed since the round before. No I/O.

Each rule yields what it found broken in words. They hold at every moment, in the middle of any fault: whatever a rule
compares was read in such an order that the later reading must show what the earlier one claims (books.Snapshot).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from purchase_svc.purchase import PurchaseState, may_become
from tests.faults.books import Snapshot
from tests.faults.history import Key

_FINAL = ("CONFIRMED", "FAILED", "CANCELLED")


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
    """I2: the share is assigned before the money is captured, so whoever paid owns shares."""
    for key, state in look.now.holds.items():
        unit = look.now.reservations.get(key)
        if state == "CAPTURED" and (unit is None or unit.state != "SOLD" or len(unit.share_numbers) != unit.quantity):
            yield f"{key} has paid and has no shares: {unit}"


def confirmed_have_both(look: Round) -> Iterator[str]:
    """I2: a confirmed purchase has its shares and has been paid."""
    for key, row in look.now.purchases.items():
        if row.state == "CONFIRMED":
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
            # A look may miss a step in between.
            steps = {step for step in PurchaseState if may_become(PurchaseState(earlier.state), step)}
            if later.state not in steps and not any(may_become(step, PurchaseState(later.state)) for step in steps):
                yield f"{key} went from {earlier.state} to {later.state}"
        elif earlier.state in _FINAL and (later.share_numbers, later.reason) != (earlier.share_numbers, earlier.reason):
            yield f"{key} was final and has changed"


def reservations_never_return(look: Round) -> Iterator[str]:
    """I5: a released reservation stays released, a captured or refused hold stays so."""
    if look.before is None:
        return
    for key, unit in look.before.reservations.items():
        later = look.now.reservations.get(key)
        if later is None or (unit.state == "RELEASED" and later.state != "RELEASED"):
            yield f"reservation {key} went from {unit.state} to {later}"
    for key, state in look.before.holds.items():
        if state != "HELD" and look.now.holds.get(key) != state:
            yield f"hold {key} went from {state} to {look.now.holds.get(key)}"


RULES: tuple[tuple[str, Callable[[Round], Iterable[str]]], ...] = (
    ("I1", owners_are_unique),
    ("I6", gate_adds_up),
    ("I3", money_adds_up),
    ("I2", captured_own_their_shares),
    ("I2", confirmed_have_both),
    ("I2", ended_have_neither),
    ("I4", accepted_are_durable),
    ("I5", steps_are_legal),
    ("I5", reservations_never_return),
)
