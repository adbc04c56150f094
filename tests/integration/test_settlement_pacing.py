"""The token bucket on a real database: what may be sent when, over all workers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psycopg
import pytest

from mesh.errors import DomainError
from mesh.postgres import open_pool
from purchase_svc.pacing import Pace, TokenBucket
from tests.support.servers import Servers

PACE = Pace(rate_per_s=500, burst=100)


@pytest.fixture
async def database_url(servers: Servers) -> str:
    return servers.migrated_database("purchase")


@pytest.fixture
async def buckets(database_url: str) -> AsyncIterator[list[TokenBucket]]:
    """The same bucket as three workers see it."""
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(open_pool(database_url, name="pace", size=2)) for _ in range(3)]
        yield [TokenBucket(pool, PACE) for pool in pools]


def busiest_second(sent: list[tuple[float, int]]) -> int:
    """Most tokens within any half-open second that begins with a sending."""
    ordered = sorted(sent)
    return max(sum(n for at, n in ordered[i:] if at < begin + 1.0) for i, (begin, _) in enumerate(ordered))


async def send(bucket: TokenBucket, batches: int, sent: list[tuple[float, int]], *, lasts_s: float = 0.0) -> None:
    for _ in range(batches):
        async with bucket.turn(PACE.batch_max):
            await asyncio.sleep(lasts_s)
            sent.append((time.monotonic(), PACE.batch_max))


async def test_three_workers_together_keep_to_one_rate_and_burst(buckets: list[TokenBucket]) -> None:
    sent: list[tuple[float, int]] = []
    begun = time.monotonic()
    await asyncio.gather(*(send(bucket, 20, sent) for bucket in buckets))
    took = time.monotonic() - begun
    assert busiest_second(sent) <= PACE.rate_per_s + PACE.burst
    # A full bucket's worth is sent at once.
    assert took == pytest.approx((60 * PACE.batch_max - PACE.capacity) / PACE.rate_per_s, rel=0.05)


async def test_idle_time_is_not_saved_up_beyond_the_bucket(buckets: list[TokenBucket]) -> None:
    sent: list[tuple[float, int]] = []
    await send(buckets[0], 8, sent)
    await asyncio.sleep(1.5)
    await send(buckets[0], 28, sent)
    assert busiest_second(sent) <= PACE.rate_per_s + PACE.capacity


async def test_calls_that_hang_and_end_together_are_made_up_for(buckets: list[TokenBucket]) -> None:
    sent: list[tuple[float, int]] = []
    await asyncio.gather(*(send(bucket, 1, sent, lasts_s=0.5) for bucket in buckets))
    await asyncio.gather(*(send(bucket, 8, sent) for bucket in buckets))
    assert busiest_second(sent) <= PACE.rate_per_s + PACE.burst


class CountingBucket(TokenBucket):
    """Counts the grants it is given."""

    grants = 0

    async def _grant(self, tokens: int) -> float:
        self.grants += 1
        return await super()._grant(tokens)


async def test_a_grant_that_is_used_too_late_is_void(database_url: str) -> None:
    async def stall() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 (the whole event loop is to stand still)

    async with open_pool(database_url, name="pace", size=2) as pool:
        bucket = CountingBucket(pool, PACE)
        await send(bucket, 1, [])
        async with asyncio.TaskGroup() as group:
            group.create_task(send(bucket, 3, []))
            await asyncio.sleep(0)
            group.create_task(stall())
    assert bucket.grants == 5


async def test_a_clock_set_back_does_not_stop_settlement(buckets: list[TokenBucket], database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute("UPDATE settlement_pace SET theoretical_arrival_time = now() + interval '1 day'")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), buckets[0].turn(1):
                pass
        row = await (
            await conn.execute("SELECT theoretical_arrival_time < now() + interval '2 minutes' FROM settlement_pace")
        ).fetchone()
    assert row == (True,)


async def test_without_the_database_there_are_no_tokens(servers: Servers, buckets: list[TokenBucket]) -> None:
    await asyncio.to_thread(servers.stop, "postgres")
    try:
        with pytest.raises(DomainError, match="database is away"):
            async with buckets[0].turn(1):
                pytest.fail("sent without a token")
    finally:
        await asyncio.to_thread(servers.start, "postgres")
