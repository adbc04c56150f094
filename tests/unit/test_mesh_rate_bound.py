"""Work let through at a bounded rate."""

import asyncio

from mesh.rate_bound import RateBound


async def test_work_is_let_through_in_order_and_no_faster_than_allowed() -> None:
    loop, bound = asyncio.get_running_loop(), RateBound(1_000.0)
    began, done = loop.time(), []

    async def work(number: int) -> None:
        assert await bound.turn(20, began + 10)
        done.append((number, loop.time() - began))

    await asyncio.gather(*(work(number) for number in range(6)))
    assert [number for number, _ in done] == list(range(6))
    for number, at_s in done:
        assert at_s >= 0.02 * number - 0.001


async def test_what_cannot_begin_in_time_is_told_so_at_once_and_uses_no_turn() -> None:
    loop, bound = asyncio.get_running_loop(), RateBound(10.0)
    began = loop.time()
    assert await bound.turn(1_000, began + 1)
    assert not await bound.turn(1, began + 1)
    assert loop.time() - began < 0.5


async def test_no_rate_is_no_bound() -> None:
    bound = RateBound(0.0)
    assert all([await bound.turn(1_000_000, 0.0) for _ in range(10)])
