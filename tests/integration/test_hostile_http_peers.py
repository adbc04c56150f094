"""What a hostile client can do to the gateway: buyers beside it are served as if it were not there.

Every attack is on a gateway of the test's own, on loopback, bounded in number and time. Attacker and gateway are one
process here, so what memory grows by is that of both.
"""

import asyncio
import contextlib
import gzip
import itertools
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.local_tokens import issue
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness, until
from tests.support.bystander import Bystander, bystander
from tests.support.memory import memory_mb

BUY = f"/v1/sales/{SALE}/purchases"
#: A purchase beside an attack is answered within this, s.
UNAFFECTED_S = 1.5


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def attacked(**settings: Any) -> AsyncIterator[tuple[Harness, Bystander]]:
    """A gateway, and a buyer who goes on buying, each time on a connection that is there already."""
    numbers = itertools.count()
    async with harness(user_burst=1_000_000, user_rate_per_s=1_000_000.0, **settings) as made:

        async def buy() -> None:
            assert (await made.buy(f"bystander-{next(numbers)}")).status == 202

        await buy()
        async with bystander(buy) as met:
            yield made, met


async def hung_up(reader: asyncio.StreamReader) -> None:
    """Waits until the gateway has closed a connection."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass


async def test_heads_that_never_end_are_given_up_and_buyers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http_server._HEAD_TIMEOUT_MS", 2_000)
    async with attacked() as (h, met):
        before = memory_mb()
        slow = [await h.connect() for _ in range(1_000)]
        for reader, writer in slow:
            writer.write(f"POST {BUY} HTTP/1.1\r\nhost: t\r\nx-slow: ".encode())
            assert not reader.at_eof()

        async def trickle() -> None:
            while True:
                for _, writer in slow:
                    if not writer.is_closing():
                        writer.write(b"y")
                await asyncio.sleep(0.3)

        trickling = asyncio.ensure_future(trickle())
        try:
            async with asyncio.timeout(10):
                await asyncio.gather(*(hung_up(reader) for reader, _ in slow))
        finally:
            trickling.cancel()
            await asyncio.wait({trickling})
        assert memory_mb() < before + 100
    met.assert_unaffected(calls=30, within_s=UNAFFECTED_S)


async def test_bodies_that_never_end_are_given_up_and_buyers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests._BODY_S_MAX", 1.0)
    async with attacked() as (h, met):
        slow = [await h.connect() for _ in range(500)]
        for number, (_, writer) in enumerate(slow):
            writer.write(
                f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'slow')}\r\n"
                f"idempotency-key: slow-{number}\r\ncontent-length: 14\r\n\r\n{{".encode()
            )
        heads = await asyncio.wait_for(asyncio.gather(*(reader.readline() for reader, _ in slow)), 10)
        assert {head.split()[1] for head in heads} == {b"408"}
        assert not any(key.startswith("slow-") for key in h.purchases.bought)
    met.assert_unaffected(calls=20, within_s=UNAFFECTED_S)


async def test_a_flood_of_connections_holds_up_newcomers_for_a_while_and_buyers_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.http_server._HEAD_TIMEOUT_MS", 1_000)
    async with attacked(connections_max=100) as (h, met):
        idle = [await h.connect() for _ in range(350)]
        # A newcomer comes behind all that came before; every connection that says nothing makes room in time.
        reply = await h.raw(b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n", timeout_s=30)
        assert reply.startswith(b"200")
        del idle
    met.assert_unaffected(calls=30, within_s=UNAFFECTED_S)


async def test_answers_that_nobody_reads_hold_bounded_memory() -> None:
    async with attacked() as (h, met):
        before = memory_mb()
        page = await h.get("/pages/js/buying.js")
        assert page.status == 200
        requests = b"GET /pages/js/buying.js HTTP/1.1\r\nhost: t\r\n\r\n" * 200
        deaf = [await h.connect() for _ in range(20)]
        for _, writer in deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.transport.set_write_buffer_limits(high=0)

        async def send(writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(3):
                    for _ in range(20):
                        writer.write(requests)
                        await writer.drain()

        await asyncio.gather(*(send(writer) for _, writer in deaf))
        await until(lambda: len(met.took_s) >= 30, timeout_s=20)
        assert len(page.body) * 20 * 200 * len(deaf) > 400 * 1024 * 1024, "all answers together would not be much"
        assert memory_mb() < before + 150
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_a_head_beyond_its_bound_is_refused_before_it_is_all_there() -> None:
    async with attacked() as (h, met):
        before = memory_mb()
        for lines in (b"x: " + b"y" * 8_000 + b"\r\n", b"a: b\r\n" * 1_000):
            reader, writer = await h.connect()
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: t\r\n")
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 20_000_000 and not reader.at_eof():
                    writer.write(lines)
                    sent += len(lines)
                    await writer.drain()
            # The rest is what the two kernels hold.
            assert sent < 20_000_000
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    head = await reader.readline()
                    assert head == b"" or head.split()[1] in (b"400", b"431")
        assert memory_mb() < before + 40
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_a_compressed_body_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(3_000_000), 9)
    assert len(bomb) < 4096
    async with attacked() as (h, met):
        before = memory_mb()
        for number in range(100):
            reply = await h.buy(f"bomb-{number}", body=bomb, headers={"content-encoding": "gzip"})
            assert reply.status in (400, 415)
        assert memory_mb() < before + 40
        assert not any(key.startswith("bomb-") for key in h.purchases.bought)
    met.assert_unaffected(within_s=UNAFFECTED_S)


async def test_connections_that_are_reset_at_once_leave_nothing_behind() -> None:
    async with attacked() as (h, met):
        before = memory_mb()
        for number in range(2_000):
            _, writer = await h.connect()
            writer.write(
                f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rude')}\r\n"
                f'idempotency-key: rude-{number}\r\ncontent-length: 14\r\n\r\n{{"quantity":1}}'.encode()
            )
            writer.transport.abort()
        await until(lambda: h.gateway.app.in_flight <= 1, timeout_s=15)
        assert memory_mb() < before + 60
    met.assert_unaffected(calls=10, within_s=UNAFFECTED_S)
