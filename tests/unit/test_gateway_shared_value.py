"""A value that many ask for is read once for all of them."""

import asyncio

import pytest

from gateway.shared_value import SharedValue


class Source:
    def __init__(self) -> None:
        self.reads = 0
        self.open = asyncio.Event()
        self.failure: Exception | None = None

    async def read(self) -> int:
        self.reads += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return self.reads


async def test_a_crowd_shares_one_reading_and_who_gives_up_takes_it_from_nobody() -> None:
    source = Source()
    value = SharedValue(source.read, 60.0)
    first, *others = [asyncio.ensure_future(value.get()) for _ in range(100)]
    await asyncio.sleep(0)
    first.cancel()
    source.open.set()
    assert await asyncio.gather(*others) == [1] * 99
    assert await value.get() == 1
    assert source.reads == 1


async def test_a_value_that_is_too_old_is_read_again() -> None:
    source = Source()
    source.open.set()
    value = SharedValue(source.read, 0.0)
    assert await value.get() == 1
    await asyncio.sleep(0.001)
    assert await value.get() == 2


async def test_a_failure_is_everybody_s_who_waited_and_is_not_remembered() -> None:
    source = Source()
    source.failure = ValueError("away")
    value = SharedValue(source.read, 60.0)
    waiting = [asyncio.ensure_future(value.get()) for _ in range(3)]
    await asyncio.sleep(0)
    source.open.set()
    for each in waiting:
        with pytest.raises(ValueError, match="away"):
            await each
    source.failure = None
    assert await value.get() == 2
