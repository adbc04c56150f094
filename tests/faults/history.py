"""Everything that buyers asked and were told during a fault, and what they must never be told."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

#: Answers after which a request may be sent again; 0 is none at all.
COME_AGAIN = (0, 429, 503, 504)
#: A buyer's request: user id and request id.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """One request and its answer. Status 0: the connection broke or stayed silent, so the outcome is unknown."""

    at_s: float
    user_id: str
    request_id: str
    #: "buy", "cancel" or "refund".
    act: str
    status: int
    reason: str
    purchase_id: str
    took_ms: float

    @property
    def key(self) -> Key:
        """Which buyer's request it was."""
        return (self.user_id, self.request_id)


class History:
    """The events of one sale, checked as they come. ``broken`` is told each promise that an answer breaks."""

    def __init__(self, broken: Callable[[str, str], None]) -> None:
        self.events: list[Event] = []
        #: Purchase id of every request that was answered 202.
        self.accepted: dict[Key, str] = {}
        #: Requests whose cancel was answered 200.
        self.cancelled: set[Key] = set()
        #: Requests whose refund was answered 200 or 202.
        self.refunded: set[Key] = set()
        #: Requests that were told that they wait in line.
        self.in_line: set[Key] = set()
        #: Requests with a purchase that were refused all the same: right only if the purchase came to nothing.
        self.denied: list[Event] = []
        self.statuses: Counter[str] = Counter()
        self._broken = broken
        self._began = time.monotonic()

    def add(
        self,
        act: str,
        key: Key,
        status: int,
        *,
        reason: str = "",
        purchase_id: str = "",
        in_line: bool = False,
        took_ms: float = 0.0,
    ) -> None:
        """Notes an answer, and checks it against what this buyer was told before.
        ``in_line``: it said that the purchase waits."""
        event = Event(time.monotonic() - self._began, *key, act, status, reason, purchase_id, took_ms)
        self.events.append(event)
        self.statuses[f"{act} {status} {reason}".strip()] += 1
        if status >= 500 and status not in COME_AGAIN:
            self._broken("answers", f"{key} was told {status} {reason}")
        if act == "cancel":
            if status == 200:
                self.cancelled.add(key)
            return
        if act == "refund":
            if status in (200, 202):
                self.refunded.add(key)
            return
        known = self.accepted.get(key)
        if status == 202:
            if known not in (None, purchase_id):
                self._broken("I5", f"{key} is purchase {known} and was told {purchase_id}")
            self.accepted[key] = purchase_id
            if in_line:
                self.in_line.add(key)
        elif known is not None and status not in COME_AGAIN:
            self.denied.append(event)

    def write(self, path: Path) -> None:
        """Writes all events to a file, one in a line."""
        path.write_text("".join(json.dumps(asdict(event)) + "\n" for event in self.events))
