"""I8 as plain functions over what an audit saw: the waitlist is served first come, first served. Pure.

What is checked is the record that the Inventory Service keeps of every line: who joined with which ticket, and in which
order it was decided. Two things cannot be seen from outside, neither here nor anywhere else: that a newcomer was served
while somebody waited (a grant is made in Redis and bears no time that could be compared with the line's), and the order
in which people pressed Buy before they had tickets. The first is for tests of the gate's script.
"""

from collections.abc import Iterable

from bench.audit.data import InLine, Look, Purchase, Reservation, SaleLook
from bench.audit.violation import Violation

#: For how long whoever has been promoted, or whose line has ended, may not have been told, seconds: the follower's and
#: the sweeper's ways several times over.
UNTOLD_S = 60.0
#: For how long units may lie on sale while somebody waits for no more than them, seconds: many rounds of the promoter.
IDLE_S = 15.0
#: For how long somebody may wait in the line of a sale that is closed, seconds.
CLOSED_S = 60.0

_NEVER = float("inf")


def check_line(look: Look) -> list[Violation]:
    """I8: promotions follow the tickets, what is decided stays, and each is told its place."""
    purchases = {item.purchase_id: item for item in look.purchases}
    found: list[Violation] = []
    for sale in look.sales:
        if not sale.line:
            continue
        found += _wrong_numbers(sale)
        found += _passed_over(sale)
        found += _wrong_units(sale)
        found += _wrong_places(sale)
        found += _idle_units(sale)
        found += _wrong_purchases(look, sale, purchases)
    return found + _in_no_line(look)


def passed_over(line: Iterable[InLine], overtaking_allowed: bool) -> list[tuple[InLine, InLine]]:
    """Who was promoted before somebody with an earlier ticket who waited then, and one whom it passed. With
    ``overtaking_allowed`` whoever wants more units may be passed."""
    #: The latest decided of those before, by quantity; whoever waits is decided last of all.
    latest: dict[int, tuple[float, InLine]] = {}
    found = []
    for item in sorted(line, key=lambda each: each.ticket):
        if item.state == "PROMOTED":
            for quantity, (decided, earlier) in latest.items():
                if decided > item.decision_number and not (overtaking_allowed and quantity > item.quantity):
                    found.append((item, earlier))
                    break
        decided = _NEVER if item.state == "WAITING" else item.decision_number
        if decided > latest.get(item.quantity, (0, item))[0]:
            latest[item.quantity] = (decided, item)
    return found


def _passed_over(sale: SaleLook) -> list[Violation]:
    return [
        Violation(
            "I8",
            "overtaken",
            item.reservation_id,
            f"promoted with ticket {item.ticket} as number {item.decision_number} before ticket {earlier.ticket}"
            f" ({earlier.state}{f' as number {earlier.decision_number}' if earlier.decision_number else ''})",
        )
        for item, earlier in passed_over(sale.line, sale.overtaking_allowed)
    ]


def _wrong_numbers(sale: SaleLook) -> list[Violation]:
    """Tickets and decisions are numbered from 1 on, each number once."""
    found = []
    for what, numbers in (
        ("ticket", [item.ticket for item in sale.line]),
        ("decision", [item.decision_number for item in sale.line if item.state != "WAITING"]),
    ):
        if len(set(numbers)) != len(numbers) or min(numbers, default=1) < 1:
            found.append(Violation("I8", f"{what} numbers", sale.sale_id, f"a {what} number is given twice or below 1"))
    return found


def _wrong_units(sale: SaleLook) -> list[Violation]:
    """Whoever is promoted has a reservation; whoever left, or waits, has none that counts. The line was read first."""
    reservations = {item.reservation_id: item for item in sale.reservations}
    found = []
    for item in sale.line:
        text = _wrong_reservation(item, reservations.get(item.reservation_id))
        if text:
            found.append(Violation("I8", f"units {item.state.lower()}", item.reservation_id, text))
    return found


def _wrong_reservation(item: InLine, reservation: Reservation | None) -> str:
    if item.state == "PROMOTED":
        if reservation is None:
            return "promoted, but it has no reservation"
        wanted = (item.user_id, item.request_id, item.quantity)
        if (reservation.user_id, reservation.request_id, reservation.quantity) != wanted:
            return "its place in line and its reservation are of different contents"
        return ""
    if reservation is None:
        # A tombstone is written together with the end of the wait.
        return "" if item.state == "WAITING" else f"{item.state}, but its id is not spent"
    if item.state == "WAITING" or reservation.state != "RELEASED":
        return f"{item.state}, but its reservation is {reservation.state}"
    return ""


def _wrong_places(sale: SaleLook) -> list[Violation]:
    """A place told after the line was read is at most the place in that line: nobody is put in front of anybody. Nobody
    moved if the gate's reading is the same before and after; then it is that place."""
    still = sale.gate_before is not None and sale.gate_before == sale.gate_after
    found = []
    last = 0
    waiting = [item for item in sale.line if item.state == "WAITING"]
    for place, item in enumerate(waiting, start=1):
        told = item.told_place
        # Zero: it was promoted or left between the two readings.
        if told is None or (told == 0 and not still):
            continue
        if told > place or told <= last or (still and told != place):
            text = f"told place {told}, is {place}. of {len(waiting)} in line"
            found.append(Violation("I8", "place", item.reservation_id, text))
        last = max(last, told)
    return found


def _idle_units(sale: SaleLook) -> list[Violation]:
    """I7: nothing lies on sale that somebody in line could have."""
    waiting = [item.quantity for item in sale.line if item.state == "WAITING"]
    gate = sale.gate_after
    if not waiting or gate is None:
        return []
    wanted = min(waiting) if sale.overtaking_allowed else waiting[0]
    if sale.state in ("OPEN", "SOLD_OUT") and gate.available >= wanted:
        text = f"{gate.available} units on sale, and the first of {len(waiting)} in line wants {wanted}"
        return [Violation("I7", "idle units", sale.sale_id, text, IDLE_S)]
    if sale.state == "CLOSED":
        return [Violation("I8", "line of a closed sale", sale.sale_id, f"{len(waiting)} wait", CLOSED_S)]
    return []


def _wrong_purchases(look: Look, sale: SaleLook, purchases: dict[str, Purchase]) -> list[Violation]:
    """Whoever's wait is over is told so; whoever ended does not wait. Purchases were read before the line."""
    found = []
    for item in sale.line:
        purchase = purchases.get(item.reservation_id)
        if purchase is None:
            continue
        if purchase.state == "WAITLISTED" and item.state != "WAITING" and look.now_s - item.end_s > UNTOLD_S:
            text = f"WAITLISTED, but its place in line is {item.state} for {look.now_s - item.end_s:.0f} s"
            found.append(Violation("I4", "untold", item.reservation_id, text))
        ended = purchase.state in ("FAILED", "CANCELLED", "REFUNDED") and look.now_s - purchase.update_s > UNTOLD_S
        if item.state == "WAITING" and (ended or purchase.state in ("CONFIRMED", "REFUNDING")):
            found.append(Violation("I8", "waits on", item.reservation_id, f"{purchase.state}, but it waits in line"))
    return found


def _in_no_line(look: Look) -> list[Violation]:
    lines = {item.reservation_id for sale in look.sales for item in sale.line}
    return [
        Violation("I8", "in no line", item.purchase_id, "WAITLISTED, but it waits in no line")
        for item in look.purchases
        if item.state == "WAITLISTED" and item.purchase_id not in lines
    ]
