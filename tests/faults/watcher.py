"""Checks every promise again and again while a fault is at work, and tells when settlement went on."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import psycopg
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from redis.exceptions import RedisError

from tests.faults.books import Books, Snapshot
from tests.faults.history import History
from tests.faults.rules import RULES, Round

#: Pause between two rounds, seconds.
_PAUSE_S = 0.1
#: What a server that is away makes a reading raise.
AWAY = (psycopg.Error, RedisError, OSError, TimeoutError)
#: States of purchases that settlement has done with.
_SETTLED = ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDING", "REFUNDED")
#: Breaches of one promise that are kept in words.
_KEPT_MAX = 5


class Verdict:
    """What was checked and what was found broken."""

    def __init__(self) -> None:
        #: Evaluations by promise.
        self.checked: Counter[str] = Counter()
        #: In words, without repetitions.
        self.violations: list[str] = []
        self._kept: Counter[str] = Counter()

    def broken(self, promise: str, what: str) -> None:
        """Notes a breach."""
        text = f"{promise}: {what}"
        if text not in self.violations and self._kept[promise] < _KEPT_MAX:
            self._kept[promise] += 1
            self.violations.append(text)

    def require(self, promise: str, holds: bool, what: str) -> None:
        """Checks something once."""
        self.checked[promise] += 1
        if not holds:
            self.broken(promise, what)


class Watcher:
    """Takes round after round until stopped. Where a server is away it goes on with the next round."""

    def __init__(self, books: Books, history: History, verdict: Verdict, total: Callable[[], int]) -> None:
        self._books = books
        self._history = history
        self._verdict = verdict
        self._total = total
        self._last: Snapshot | None = None
        self._stopping = False
        #: Units on sale for whoever comes anew, by the last reading of the gate: none while somebody waits.
        self.on_sale = 0
        #: Purchases that wait in line.
        self.in_line = 0
        #: Requests that were promoted out of the line.
        self.promoted = 0
        #: Requests that left it.
        self.left_line = 0
        #: When the gate was last seen in service, on the monotonic clock before it was read.
        self.gate_served_at = 0.0
        self.settled = 0
        #: When the number of settled purchases last grew, on the monotonic clock.
        self.settled_at = 0.0
        self.epoch = 0
        self.expired_holds = 0
        #: Purchases that the sweeper found to have been abandoned.
        self.abandoned = 0
        self.rounds = 0
        self.blind_rounds = 0

    def stop(self) -> None:
        """Ends ``run`` after the round under way."""
        self._stopping = True

    async def run(self) -> None:
        """Watches."""
        while not self._stopping:
            # Copied first: what was told by then must be there in what is read now.
            accepted = dict(self._history.accepted)
            began = time.monotonic()
            try:
                now = await self._books.snapshot()
            except AWAY:
                self.blind_rounds += 1
                self.on_sale = 0
            else:
                self._look(Round(now, self._last, accepted, self._total()), began)
            await asyncio.sleep(_PAUSE_S)

    def _look(self, look: Round, began: float) -> None:
        self.rounds += 1
        for promise, rule in RULES:
            self._verdict.checked[promise] += 1
            for what in rule(look):
                self._verdict.broken(promise, what)
        self._last = look.now
        serving = look.now.gate.get("serving") == "1"
        free = serving and look.now.gate["waiting"] == "0"
        self.on_sale = int(look.now.gate["available"]) if free else 0
        if serving:
            self.gate_served_at = began
            self.epoch = int(look.now.gate["epoch"])
        self.expired_holds = sum(1 for state in look.now.holds.values() if state == "EXPIRED")
        rows = look.now.purchases.values()
        self.abandoned = sum(1 for row in rows if row.reason == ErrorReason.ERROR_REASON_ABANDONED)
        self.in_line = sum(1 for row in rows if row.state == "WAITLISTED")
        line = Counter(place.state for place in look.now.line.values())
        self.promoted, self.left_line = line["PROMOTED"], line["LEFT"]
        settled = sum(1 for row in rows if row.state in _SETTLED)
        if settled != self.settled:
            self.settled, self.settled_at = settled, time.monotonic()
