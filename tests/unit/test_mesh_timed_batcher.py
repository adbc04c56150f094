"""Batches whose callers have deadlines: how long a call may take, and what is broken off when nobody waits."""

import asyncio
from collections.abc import Sequence

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.timed_batcher import TimedBatcher


class Slow:
    """Answers when told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[str], float]] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.broken_off = asyncio.Event()
        self.batcher: TimedBatcher[str, str] = TimedBatcher(self.handle, batch_max=10, in_flight_max=1, queue_max=10)

    async def handle(self, items: Sequence[str], timeout_s: float) -> list[str]:
        self.batches.append((list(items), timeout_s))
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.broken_off.set()
            raise
        return [item.upper() for item in items]

    def ask(self, item: str, timeout_s: float) -> "asyncio.Task[str]":
        return asyncio.get_running_loop().create_task(self.batcher.submit(item, timeout_s))


async def reason_of(task: "asyncio.Task[str]") -> int:
    with pytest.raises(DomainError) as caught:
        await task
    return caught.value.reason


async def test_each_caller_gets_its_own_result_within_the_last_ones_time() -> None:
    slow = Slow()
    tasks = [slow.ask("a", 1.0), slow.ask("b", 3.0)]
    await slow.begun.wait()
    slow.go_on.set()
    assert await asyncio.gather(*tasks) == ["A", "B"]
    ((items, timeout_s),) = slow.batches
    assert items == ["a", "b"]
    assert 2.5 < timeout_s <= 3.0


async def test_one_whose_time_is_up_leaves_and_the_others_are_answered() -> None:
    slow = Slow()
    hasty, patient = slow.ask("a", 0.05), slow.ask("b", 5.0)
    assert await reason_of(hasty) == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    assert not slow.broken_off.is_set()
    slow.go_on.set()
    assert await patient == "B"


async def test_a_batch_is_broken_off_when_the_last_caller_has_left() -> None:
    slow = Slow()
    hasty, leaving = slow.ask("a", 0.05), slow.ask("b", 5.0)
    assert await reason_of(hasty) == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    leaving.cancel()
    await asyncio.wait_for(slow.broken_off.wait(), 5)
    # And the next one is served.
    slow.go_on.set()
    assert await slow.ask("c", 5.0) == "C"


async def test_what_expires_before_its_batch_is_begun_is_in_none() -> None:
    slow = Slow()
    first = slow.ask("a", 5.0)
    await slow.begun.wait()
    late = slow.ask("b", 0.05)
    assert await reason_of(late) == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    slow.go_on.set()
    assert await first == "A"
    assert await slow.ask("c", 5.0) == "C"
    assert [items for items, _ in slow.batches] == [["a"], ["c"]]
