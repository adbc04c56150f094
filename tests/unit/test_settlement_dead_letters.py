"""What a dead letter tells about itself, when a parked purchase may fail, and when a lane acks what it puts aside."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.settlement.v1 import settlement_message_pb2

from mesh.errors import DomainError
from purchase_svc import settlement_lane
from purchase_svc.dead_letter import DeadLetter, put_aside, read
from purchase_svc.parked import why_open
from purchase_svc.plain_table import table
from purchase_svc.settlement import Settled
from purchase_svc.settlement_lane import Delivery, Lane
from purchase_svc.settlement_queue import decode_from, encode
from purchase_svc.settlement_rules import Answer

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
_R = ErrorReason


def test_a_letter_is_read_back_from_its_headers() -> None:
    letter = put_aside(b"?", "not a SettlementMessage", 3, NOW, message_id="m1", kind="some.Type")
    assert letter == DeadLetter(b"?", "not a SettlementMessage", 3, NOW, "m1", "some.Type")
    assert read(letter.body, letter.headers) == letter
    bare = put_aside(b"?", "version 2 is unknown", 0, NOW)
    assert set(bare.headers) == {"x-reason", "x-partition", "x-first-seen"}
    assert read(bare.body, bare.headers) == bare


def test_a_letter_that_waited_for_room_keeps_the_time_at_which_it_was_first_seen() -> None:
    first = put_aside(b"?", "garbage", 3, NOW)
    again = put_aside(b"?", "garbage", 3, NOW + timedelta(seconds=30), headers=first.headers)
    assert again.first_seen == NOW


def test_the_brokers_own_reason_is_shown() -> None:
    retried = {"reason": "expired", "queue": "settlement.retry.1s", "time": NOW}
    limit = {"reason": "delivery_limit", "queue": "settlement.05", "time": NOW, "count": 1}
    ids = (uuid.uuid4(),)
    letter = read(encode(5, ids), {"x-death": [limit, retried]})
    assert (letter.reason, letter.partition, letter.first_seen) == ("delivery limit in the broker", 5, NOW)
    assert letter.purchase_ids == ids
    # One that only came back from a retry was put aside by a worker, and has its word.
    assert read(b"", {"x-death": [retried], "x-reason": "garbage"}).reason == "garbage"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-reason": 7, "x-partition": "three", "x-first-seen": "yesterday"},
        {"x-reason": b"bytes", "x-partition": 99, "x-first-seen": 12},
        {"x-death": "gone"},
        {"x-death": ["gone", {"queue": ["settlement.05"]}, {"queue": "another"}]},
    ],
)
def test_headers_of_strangers_are_no_obstacle(headers: dict[str, Any]) -> None:
    assert read(b"?", headers) == DeadLetter(b"?", "no reason given", None, None)


def test_nothing_unprintable_reaches_a_terminal() -> None:
    letter = read(b"?", {"x-reason": "\x1b[2J" + "a" * 500})
    assert letter.reason.startswith("?[2Jaaa")
    assert len(letter.reason) == 200


def test_a_message_belongs_to_the_partition_of_its_queue() -> None:
    body = encode(4, [uuid.uuid4()])
    assert decode_from(4, body).partition == 4
    with pytest.raises(ValueError, match="names partition 4 in the queue of 5"):
        decode_from(5, body)


def test_what_cannot_be_parsed_has_no_purchases() -> None:
    future = settlement_message_pb2.SettlementMessage(version=2, partition=3, purchase_ids=[bytes(16)])
    assert put_aside(future.SerializeToString(), "future", 3, NOW).purchase_ids == ()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(_R.ERROR_REASON_UNSPECIFIED), ""),
        (Answer(_R.ERROR_REASON_HOLD_REVERSED), ""),
        (Answer(_R.ERROR_REASON_HOLD_CAPTURED), "its money was captured: replay it, which confirms it"),
        (Answer(_R.ERROR_REASON_HOLD_NOT_FOUND), "its hold could not be released: HOLD_NOT_FOUND"),
        (Answer(_R.ERROR_REASON_INVALID_ARGUMENT), "its hold could not be released: INVALID_ARGUMENT"),
        (Answer(_R.ERROR_REASON_UNAVAILABLE, known=False), "its hold could not be released: UNAVAILABLE"),
        (Answer(_R.ERROR_REASON_UNSPECIFIED, known=False), "its hold could not be released: UNSPECIFIED"),
        (Answer(_R.ERROR_REASON_HOLD_CAPTURED, known=False), "its hold could not be released: HOLD_CAPTURED"),
    ],
)
def test_a_purchase_fails_only_when_its_money_can_never_be_taken(answer: Answer, verdict: str) -> None:
    assert why_open(answer) == verdict


class Recorder:
    """Stands for the saga, the book and the publisher; no purchase of it exists."""

    batch_max = 10

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.log: list[str] = []

    async def settle(self, ids: Sequence[uuid.UUID]) -> Settled:
        return Settled((), (), tuple(ids))

    async def put_aside(self, letter: DeadLetter) -> None:
        if self.refusals:
            self.refusals -= 1
            raise DomainError(_R.ERROR_REASON_UNAVAILABLE)
        self.log.append(f"{letter.partition}: {len(letter.purchase_ids)} {letter.reason}")


async def test_a_lane_acks_only_after_the_letter_was_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement_lane, "_PAUSE_MIN_S", 0.01)
    fake: Any = Recorder(refusals=2)
    lane = Lane(fake, fake, fake)
    acked = asyncio.Event()

    async def ack() -> None:
        fake.log.append("ack")
        acked.set()

    lane.add(Delivery(3, [uuid.uuid4(), uuid.uuid4()], ack))
    task = asyncio.create_task(lane.run())
    async with asyncio.timeout(5):
        await acked.wait()
    lane.stop()
    await task
    assert fake.log == ["3: 2 unknown purchase", "ack"]


def test_a_table_is_aligned() -> None:
    assert table(("", "name", "n"), [("1", "a", "5"), ("12", "long", "100")], right=(0, 2)) == [
        "    name    n",
        " 1  a       5",
        "12  long  100",
    ]
    assert table(("a", "b"), []) == ["a  b"]
