"""The batcher: each caller gets its own result, waits are bounded, and an error reaches exactly its batch."""

import asyncio
from collections.abc import Sequence

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.batcher import Batcher
from mesh.errors import DomainError


async def test_each_caller_gets_its_own_result_whatever_the_batches() -> None:
    sizes: list[int] = []

    async def double(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(0)
        return [2 * item for item in items]

    batcher = Batcher(double, batch_max=7, in_flight_max=2, queue_max=1000)
    results = await asyncio.gather(*(batcher.submit(number) for number in range(100)))
    assert results == [2 * number for number in range(100)]
    assert max(sizes) == 7


async def test_a_full_queue_refuses_at_once() -> None:
    gate = asyncio.Event()

    async def wait(items: Sequence[int]) -> Sequence[int]:
        await gate.wait()
        return items

    batcher = Batcher(wait, batch_max=1, in_flight_max=1, queue_max=2)
    under_way = asyncio.ensure_future(batcher.submit(0))
    while batcher.in_flight == 0:
        await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(batcher.submit(number)) for number in (1, 2)]
    while batcher.queued < 2:
        await asyncio.sleep(0)
    with pytest.raises(DomainError) as refused:
        await batcher.submit(3)
    assert refused.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
    gate.set()
    assert await asyncio.gather(under_way, *waiting) == [0, 1, 2]


async def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    async def fail_odd(items: Sequence[int]) -> Sequence[int]:
        if items[0] % 2:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        return items

    batcher = Batcher(fail_odd, batch_max=1, in_flight_max=1, queue_max=100)
    results = await asyncio.gather(*(batcher.submit(number) for number in range(10)), return_exceptions=True)
    assert [result for result in results if isinstance(result, int)] == [0, 2, 4, 6, 8]
    assert sum(isinstance(result, DomainError) for result in results) == 5


async def test_a_caller_who_left_while_waiting_is_not_executed() -> None:
    executed: list[int] = []
    gate = asyncio.Event()

    async def note(items: Sequence[int]) -> Sequence[int]:
        executed.extend(items)
        await gate.wait()
        return items

    batcher = Batcher(note, batch_max=1, in_flight_max=1, queue_max=10)
    first = asyncio.ensure_future(batcher.submit(1))
    while not executed:
        await asyncio.sleep(0)
    second = asyncio.ensure_future(batcher.submit(2))
    third = asyncio.ensure_future(batcher.submit(3))
    await asyncio.sleep(0)
    second.cancel()
    gate.set()
    assert await first == 1
    assert await third == 3
    assert executed == [1, 3]


async def test_a_wrong_number_of_results_fails_rather_than_mixing_callers_up() -> None:
    async def lose_one(items: Sequence[int]) -> Sequence[int]:
        return items[1:]

    batcher = Batcher(lose_one, batch_max=10, in_flight_max=1, queue_max=10)
    with pytest.raises(RuntimeError, match="got 0 results"):
        await batcher.submit(1)
