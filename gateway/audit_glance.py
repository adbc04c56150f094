"""The promises at a glance: what the services say of one sale, and of the books, held against each other. Rules only.

`make audit` checks more and is the judge; this is for people who watch a sale. A sale in flight cannot be compared, for
no two readings are of the same moment; and what is on its way from SQL to Redis, or is being swept up, looks for a
moment like a broken promise. So a difference counts once it has been seen unchanged three times in a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.progress import settled_and_unsettled

#: So often in a row the same difference must be seen.
_SEEN_MIN = 3

#: Promises looked at, and what each says when it is kept.
_TEXTS = {
    "I1": "no sale has sold more shares than it has",
    "I2": "every share sold belongs to a purchase that is paid for",
    "I3": "the books sum to zero, and nobody's held money exceeds what is there",
    "I6": "Redis and SQL count the same stock",
}


@dataclass(frozen=True, slots=True)
class SaleReadings:
    """What the services said of one sale: the gate before and after everything else, the book, the purchases."""

    gate: inventory.Stock
    book: inventory.Stock
    counts: Sequence[purchase.PurchaseCount]
    gate_after: inventory.Stock


def sale_findings(name: str, readings: SaleReadings) -> dict[str, str | None]:
    """What is wrong with a sale by promise; None: nothing. Promises that cannot be judged now are left out."""
    gate, book, counts = readings.gate, readings.book, readings.counts
    findings: dict[str, str | None] = {}
    over = book.reserved + book.sold - book.total
    findings["I1"] = f"{name}: {over} shares more than it has" if over > 0 else None
    in_flight = settled_and_unsettled(counts)[1] > 0 or gate != readings.gate_after
    if in_flight:
        return findings
    told = [
        (what, getattr(gate, what), getattr(book, what))
        for what in ("available", "reserved", "sold", "total", "waiting")
    ]
    differences = [f"{what} {ours} in Redis, {theirs} in SQL" for what, ours, theirs in told if ours != theirs]
    findings["I6"] = f"{name}: {', '.join(differences)}" if differences else None
    # One that is parked may have its shares already, and not be paid for: an operator's to end.
    if any(each.state == purchase.PURCHASE_STATE_PARKED for each in counts):
        return findings
    owned = sum(
        each.units
        for each in counts
        if each.state in (purchase.PURCHASE_STATE_CONFIRMED, purchase.PURCHASE_STATE_REFUNDING)
    )
    findings["I2"] = f"{name}: {book.sold} shares sold, {owned} paid for" if owned != book.sold else None
    return findings


def books_finding(books: balance.CheckBooksResponse) -> str | None:
    """What is wrong with the books (one moment, so it needs no second look); None: nothing."""
    wrong = []
    for each in books.totals:
        if each.entries_sum_minor:
            wrong.append(f"entries in {each.currency_code} sum to {each.entries_sum_minor}")
        if each.balances_sum_minor != each.customer_entries_sum_minor:
            wrong.append(f"balances in {each.currency_code} are not the sum of their entries")
        if each.held_sum_minor != each.open_holds_sum_minor:
            wrong.append(f"held money in {each.currency_code} is not the sum of the open holds")
    if books.wrong_accounts:
        wrong.append(f"{len(books.wrong_accounts)} accounts are wrong")
    if books.wrong_transfers:
        wrong.append(f"{len(books.wrong_transfers)} transfers are wrong")
    return "; ".join(wrong) or None


@dataclass
class AuditGlance:
    """What the last checks found. ``checked_at`` is when the last of them was, RFC 3339; None before the first."""

    checked_at: str | None = None
    #: What was found wrong, and how often in a row, by promise and sale; None: nothing wrong.
    _found: dict[tuple[str, str], tuple[str | None, int]] = field(default_factory=dict)

    def note(self, subject: str, findings: Mapping[str, str | None], checked_at: str, *, at_once: bool = False) -> None:
        """Takes in what is wrong with a sale, or with the books, by promise; what is left out could not be judged.
        Readings of one moment count ``at_once``."""
        first = _SEEN_MIN if at_once else 1
        self.checked_at = checked_at
        for promise in _TEXTS:
            if promise not in findings:
                self._found.pop((promise, subject), None)
                continue
            text = findings[promise]
            known, times = self._found.get((promise, subject), (None, 0))
            self._found[promise, subject] = (text, times + 1 if known == text else first)

    def forget_others(self, subjects: set[str]) -> None:
        """Forgets every sale that is not among these."""
        self._found = {key: value for key, value in self._found.items() if key[1] in subjects}

    def shown(self) -> dict[str, Any]:
        """The verdict: broken if a promise is, kept if all that could be judged are, unknown if none could."""
        lines = [self._line(promise) for promise in _TEXTS]
        judged = [line["ok"] for line in lines if line["ok"] is not None]
        verdict = "broken" if False in judged else "kept" if judged else "unknown"
        return {"verdict": verdict, "checked_at": self.checked_at, "lines": lines}

    def _line(self, promise: str) -> dict[str, Any]:
        found = [value for (of, _), value in self._found.items() if of == promise]
        broken = [text for text, times in found if text is not None and times >= _SEEN_MIN]
        if broken:
            return {"promise": promise, "text": "; ".join(broken[:5]), "ok": False}
        kept = sum(text is None for text, _ in found)
        return {"promise": promise, "text": _TEXTS[promise], "ok": True if kept else None}
