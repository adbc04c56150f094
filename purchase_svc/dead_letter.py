"""A dead letter: a message of the settlement queue that no worker can settle, with the reason. No I/O.

The reason travels in headers, because a message that cannot be parsed has no other place for it. Times are the clock of
the worker that met the message first.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from purchase_svc.purchase import PARTITIONS
from purchase_svc.settlement_queue import decode, encode, queue_name

#: Reason of purchases that have no row: PostgreSQL was restored from an older backup, or the id was made up.
UNKNOWN_PURCHASE = "unknown purchase"

_REASON, _PARTITION, _FIRST_SEEN = "x-reason", "x-partition", "x-first-seen"
_MESSAGE_ID, _TYPE = "x-original-message-id", "x-original-type"
#: What the broker adds to a message that it dead-letters itself, the latest occasion first.
_DEATHS = "x-death"
_TEXT_MAX = 200
_QUEUES = {queue_name(partition): partition for partition in range(PARTITIONS)}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was put aside. What its headers do not tell is empty or None."""

    body: bytes
    reason: str
    #: The partition in whose queue it was met, 0 to 15.
    partition: int | None
    first_seen: datetime | None
    #: AMQP properties of the original message.
    message_id: str = ""
    kind: str = ""

    @property
    def headers(self) -> dict[str, Any]:
        """Headers from which ``read`` makes the same letter."""
        found = {
            _REASON: _printable(self.reason),
            _PARTITION: self.partition,
            _FIRST_SEEN: self.first_seen.isoformat(timespec="seconds") if self.first_seen else None,
            _MESSAGE_ID: _printable(self.message_id) or None,
            _TYPE: _printable(self.kind) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def purchase_ids(self) -> tuple[uuid.UUID, ...]:
        """The purchases it is about; none when it cannot be parsed."""
        try:
            return decode(self.body).purchase_ids
        except ValueError:
            return ()

    @property
    def flaw(self) -> str:
        """Why no worker of this version can parse it; empty when one can."""
        try:
            decode(self.body)
        except ValueError as error:
            return str(error)
        return ""

    def left_with(self, partition: int, unknown: Sequence[uuid.UUID]) -> Self:
        """What stays of it when its other purchases are settled: 1 to 500 that have no row."""
        return replace(self, body=encode(partition, unknown), partition=partition, reason=UNKNOWN_PURCHASE)


def put_aside(
    body: bytes,
    reason: str,
    partition: int,
    now: datetime,
    *,
    headers: Mapping[str, Any] | None = None,
    message_id: str | None = None,
    kind: str | None = None,
) -> DeadLetter:
    """The letter made of a message that was met in the queue of ``partition`` at ``now``.

    ``headers`` are the message's own: one that was put aside before keeps the time at which it was first seen.
    """
    seen = _moment((headers or {}).get(_FIRST_SEEN)) or now
    return DeadLetter(body, _printable(reason), partition, seen, message_id or "", kind or "")


def read(body: bytes, headers: Mapping[str, Any]) -> DeadLetter:
    """The letter in a message of the dead-letter queue, whoever put it there."""
    reason, seen = _text(headers.get(_REASON)), _moment(headers.get(_FIRST_SEEN))
    named = headers.get(_PARTITION)
    partition = named if isinstance(named, int) and 0 <= named < PARTITIONS else None
    death = _death(headers)
    # The broker's word is the later one: whoever puts a letter aside with a reason leaves out the deaths before.
    if death is not None:
        reason = f"{_text(death.get('reason'))} in the broker".replace("_", " ")
        partition = _QUEUES[death["queue"]]
        seen = seen or _moment(death.get("time"))
    return DeadLetter(
        body,
        reason or "no reason given",
        partition,
        seen,
        _text(headers.get(_MESSAGE_ID)),
        _text(headers.get(_TYPE)),
    )


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The latest occasion on which the broker itself dead-lettered the message from a partition's queue."""
    deaths = headers.get(_DEATHS)
    for death in deaths if isinstance(deaths, list) else []:
        if isinstance(death, Mapping) and isinstance(death.get("queue"), str) and death["queue"] in _QUEUES:
            return death
    return None


def _moment(value: object) -> datetime | None:
    """A header's time; AMQP timestamps and ISO 8601 texts are understood, one without a zone as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _text(value: object) -> str:
    return _printable(value) if isinstance(value, str) else ""


def _printable(text: str) -> str:
    """Short, and safe to show in a terminal, whoever wrote it."""
    return "".join(each if each.isprintable() else "?" for each in text[:_TEXT_MAX])
