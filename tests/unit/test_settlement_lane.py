"""How a lane makes batches of messages, and when it acks them. What settles the batches is a list of what to answer."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from purchase_svc import settlement_lane
from purchase_svc.purchase import PurchaseState
from purchase_svc.settlement import Settled
from purchase_svc.settlement_lane import Delivery, Lane
from purchase_svc.settlement_rules import Ending, Retry

UNAVAILABLE = ErrorReason.ERROR_REASON_UNAVAILABLE


class Recorder:
    """Stands for the saga, the book and the publisher; confirms everything that is not to be retried."""

    batch_max = 10

    def __init__(self) -> None:
        self.batches: list[list[uuid.UUID]] = []
        self.acked: list[str] = []
        self.requeued: list[tuple[int, list[uuid.UUID], float]] = []
        self.to_retry: set[uuid.UUID] = set()
        self.failures = 0
        self.publish_failures = 0

    async def settle(self, ids: Sequence[uuid.UUID]) -> Settled:
        if self.failures:
            self.failures -= 1
            raise DomainError(UNAVAILABLE)
        self.batches.append(list(ids))
        endings = [Ending(each, PurchaseState.CONFIRMED, 0, (1,)) for each in ids if each not in self.to_retry]
        return Settled(tuple(endings), tuple(Retry(each, 3, 1, UNAVAILABLE) for each in ids if each in self.to_retry))

    async def publish_retry(self, partition: int, ids: Sequence[uuid.UUID], delay_s: float) -> None:
        if self.publish_failures:
            self.publish_failures -= 1
            raise DomainError(UNAVAILABLE)
        self.requeued.append((partition, list(ids), delay_s))

    async def mark_requeued(self, ids: Sequence[uuid.UUID], delay_s: float = 0.0) -> None:
        """Nothing to note."""

    def message(self, name: str, partition: int, ids: Sequence[uuid.UUID]) -> Delivery:
        async def ack() -> None:
            self.acked.append(name)

        return Delivery(partition, ids, ack)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlement_lane, "_PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(settlement_lane, "_PAUSE_MAX_S", 0.01)


def new_ids(count: int) -> list[uuid.UUID]:
    return [uuid.uuid4() for _ in range(count)]


async def run(recorder: Recorder, deliveries: Sequence[Delivery], until: Callable[[], bool]) -> Lane:
    fake: Any = recorder
    lane = Lane(fake, fake, fake)
    for delivery in deliveries:
        lane.add(delivery)
    task = asyncio.create_task(lane.run())
    async with asyncio.timeout(5):
        while not until():
            await asyncio.sleep(0.001)
    lane.stop()
    await task
    return lane


async def test_partitions_take_turns_however_long_their_queues_are() -> None:
    recorder = Recorder()
    long, short = new_ids(100), new_ids(3)
    deliveries = [recorder.message("long", 0, long), recorder.message("short", 4, short)]
    await run(recorder, deliveries, lambda: len(recorder.acked) == 2)
    assert recorder.acked == ["short", "long"]
    assert set(short) <= {each for batch in recorder.batches[:2] for each in batch}


async def test_small_messages_share_a_batch_and_large_ones_are_cut() -> None:
    recorder = Recorder()
    deliveries = [recorder.message(f"small{n}", n % 2, new_ids(2)) for n in range(5)]
    deliveries.append(recorder.message("large", 1, new_ids(25)))
    await run(recorder, deliveries, lambda: len(recorder.acked) == 6)
    assert [len(batch) for batch in recorder.batches] == [10, 10, 10, 5]


async def test_a_message_is_acked_once_after_its_last_purchase() -> None:
    recorder = Recorder()
    ids = new_ids(25)
    lane = await run(recorder, [recorder.message("m", 0, ids)], lambda: len(recorder.batches) == 3)
    assert recorder.acked == ["m"]
    assert sorted(each for batch in recorder.batches for each in batch) == sorted(ids)
    assert lane.partitions <= {0}


async def test_a_purchase_in_two_messages_of_a_batch_is_settled_once_and_both_are_acked() -> None:
    recorder = Recorder()
    ids = new_ids(4)
    deliveries = [recorder.message("first", 0, ids), recorder.message("second", 0, ids)]
    await run(recorder, deliveries, lambda: len(recorder.acked) == 2)
    assert recorder.batches == [ids]


async def test_retries_are_queued_before_the_ack_and_only_they() -> None:
    recorder = Recorder()
    recorder.publish_failures = 2
    ids = new_ids(6)
    recorder.to_retry = set(ids[:2])
    await run(recorder, [recorder.message("m", 3, ids)], lambda: recorder.acked == ["m"])
    assert recorder.requeued == [(3, ids[:2], 1)]


async def test_a_batch_waits_for_the_database_and_is_not_lost() -> None:
    recorder = Recorder()
    recorder.failures = 3
    ids = new_ids(4)
    await run(recorder, [recorder.message("m", 0, ids)], lambda: recorder.acked == ["m"])
    assert recorder.batches == [ids]


@pytest.mark.parametrize("away", ["failures", "publish_failures"])
async def test_a_lane_stopped_while_it_waits_acks_nothing(away: str) -> None:
    recorder = Recorder()
    ids = new_ids(4)
    recorder.to_retry = set(ids)
    setattr(recorder, away, 1_000_000)
    await run(recorder, [recorder.message("m", 0, ids)], lambda: getattr(recorder, away) < 999_998)
    assert recorder.acked == []


async def test_an_outage_slows_a_lane_down() -> None:
    recorder = Recorder()
    ids = new_ids(40)
    recorder.to_retry = set(ids)
    pauses: list[float] = []
    wait: Callable[[Lane, float], Awaitable[bool]] = Lane._pause

    class PausingLane(Lane):
        async def _pause(self, seconds: float) -> bool:
            pauses.append(seconds)
            return await wait(self, seconds)

    fake: Any = recorder
    lane = PausingLane(fake, fake, fake)
    lane.add(recorder.message("m", 0, ids))
    task = asyncio.create_task(lane.run())
    async with asyncio.timeout(5):
        while len(recorder.batches) < 4:
            await asyncio.sleep(0.001)
    lane.stop()
    await task
    assert len(pauses) >= 3
