"""The load generator buys like a person: one request at a time, patient after 429, always with the same key."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from bench.load.asking import ask_once
from bench.load.burst import STOCK_MARGIN, Burst
from bench.load.http_answers import AnswerError, cut_answer, facts_of, retry_delay_ms
from bench.load.plan import Buyer, LoadPlan, first_latencies, is_among, purchases_at
from bench.load.process import LoadError
from bench.measures.refusals import Asker, Refusal

#: (status, body, more head lines), or None to break the connection off.
Reply = tuple[int, dict[str, object], str] | None
Script = Callable[[str, int], Reply]


def rendered(reply: tuple[int, dict[str, object], str]) -> bytes:
    status, content, more = reply
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def next_key(reader: asyncio.StreamReader) -> str:
    """Reads one request; its key. Raises IncompleteReadError when no more come."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length
    await reader.readexactly(int(length[1]))
    match = re.search(rb"Idempotency-Key: (\S+)", head)
    assert match
    return match[1].decode()


@asynccontextmanager
async def scripted_gateway(script: Script) -> AsyncIterator[tuple[int, Counter[str]]]:
    """A server that answers each key's n-th attempt (from 1) as ``script`` says; its port, and attempts by key."""
    attempts: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                key = await next_key(reader)
                attempts[key] += 1
                reply = script(key, attempts[key])
                if reply is None:
                    return
                writer.write(rendered(reply))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], attempts
    finally:
        server.close()


@asynccontextmanager
async def deaf_gateway(is_deaf_to: Callable[[str], bool]) -> AsyncIterator[tuple[int, Counter[str], Counter[str]]]:
    """A server that accepts every key but those it is deaf to: there it waits until the client has hung up. Its port,
    and requests and hang-ups by key, complete when the block is left: by then every connection is closed."""
    requests, hang_ups = Counter[str](), Counter[str]()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                key = await next_key(reader)
                requests[key] += 1
                if is_deaf_to(key):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
                    hang_ups[key] += 1
                    break
                writer.write(rendered((202, {"purchase_id": f"id-of-{key}"}, "")))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], requests, hang_ups
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*serving)


@asynccontextmanager
async def started(
    port: int,
    users: int,
    connections: int,
    attempts_max: int = 20,
    offered_per_s: float = 0.0,
    gone_share: float = 0.0,
) -> AsyncIterator[Burst]:
    buyers = [Buyer(f"u{number}", "token", f"key-{number}") for number in range(users)]
    where = purchases_at(f"http://127.0.0.1:{port}", "x")
    burst = Burst(LoadPlan(*where, "", buyers, connections, attempts_max, offered_per_s, gone_share))
    await burst.connect()
    burst.start()
    try:
        async with asyncio.timeout(10):
            await burst.first_wave_over.wait()
        yield burst
    finally:
        await burst.close()


def accepted(key: str) -> Reply:
    return 202, {"purchase_id": f"id-of-{key}"}, ""


SOLD_OUT: Reply = (409, {"reason": "SOLD_OUT"}, "")


async def test_every_user_gets_the_answer_to_its_own_request() -> None:
    script: Script = lambda key, _: accepted(key)  # noqa: E731
    async with scripted_gateway(script) as (port, attempts), started(port, users=500, connections=20) as burst:
        results = burst.results()
    assert [item.purchase_id for item in results.buyers] == [f"id-of-key-{number}" for number in range(500)]
    assert {item.first_status for item in results.buyers} == {202}
    assert results.errors == results.shed_429 == 0
    assert set(attempts.values()) == {1}
    assert 0 < max(item.latency_ms for item in results.buyers) / 1000 <= results.burst_wall_s


async def test_whoever_waits_says_so_and_is_told_its_place_and_need_not_try_again() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length
        body = await reader.readexactly(int(length[1]))
        asked.append(body)
        place = {"purchase_id": "p", "state": "WAITLISTED", "waitlist_position": 7, "estimated_wait_s": 1}
        writer.write(rendered((202, place, "") if b"waitlist" in body else (409, {"reason": "SOLD_OUT"}, "")))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    buyers = [Buyer("ann", "token", "key-ann"), Buyer("bob", "token", "key-bob", True)]
    burst = Burst(LoadPlan(*purchases_at(f"http://127.0.0.1:{port}", "x"), "", buyers, 2))
    await burst.connect()
    burst.start()
    async with asyncio.timeout(10):
        await burst.first_wave_over.wait()
    progress, (ann, bob) = burst.progress(), burst.results().buyers
    await burst.close()
    server.close()
    assert sorted(asked) == [b'{"quantity":1,"waitlist":true}', b'{"quantity":1}']
    # What is no longer than 16 octets is known not to hold the wish.
    assert sorted(map(len, asked)) == [14, 30]
    assert (progress.accepted, progress.waitlisted, progress.hoping) == (0, 1, 1)
    assert (ann.waitlisted, bob.waitlisted, bob.waitlist_position) == (False, True, 7)


async def test_after_429_the_same_key_returns_when_its_delay_is_over() -> None:
    shed: Reply = (429, {"reason": "OVERLOADED", "retry_after_ms": 120}, "Retry-After: 1\r\n")
    script: Script = lambda key, attempt: accepted(key) if attempt == 3 else shed  # noqa: E731
    async with scripted_gateway(script) as (port, attempts), started(port, users=30, connections=5) as burst:
        results = burst.results()
    assert set(attempts.values()) == {3}
    assert results.shed_429 == 60
    assert results.errors == 0
    assert min(first_latencies(results.buyers)) >= 240


async def test_503_and_a_broken_connection_are_errors_and_are_tried_again() -> None:
    def script(key: str, attempt: int) -> Reply:
        broken: Reply = None if key == "key-1" else (503, {"reason": "UNAVAILABLE", "retry_after_ms": 10}, "")
        return broken if attempt == 1 else accepted(key)

    async with scripted_gateway(script) as (port, _), started(port, users=4, connections=2) as burst:
        results = burst.results()
    assert [item.first_status for item in results.buyers] == [202] * 4
    assert results.errors == 4
    assert results.error_kinds == {"503 UNAVAILABLE": 3, "connection lost before the answer": 1}


async def test_anything_but_202_and_409_is_no_answer() -> None:
    refused: Reply = (401, {"reason": "UNAUTHENTICATED"}, "")
    script: Script = lambda *_: refused  # noqa: E731
    async with scripted_gateway(script) as (port, _), started(port, users=3, connections=3) as burst:
        assert burst.progress().answered == 0
        assert burst.results().error_kinds == {"401 UNAUTHENTICATED": 3}


async def test_attempts_are_bounded() -> None:
    script: Script = lambda *_: (429, {"reason": "OVERLOADED", "retry_after_ms": 1}, "")  # noqa: E731
    async with scripted_gateway(script) as (port, attempts), started(port, 3, 3, attempts_max=5) as burst:
        assert burst.progress().answered == 0
        assert burst.results().error_kinds == {"attempts exhausted": 3}
    assert set(attempts.values()) == {5}


async def test_in_an_open_loop_buyers_arrive_evenly_and_wait_from_their_arrival_on() -> None:
    script: Script = lambda key, _: accepted(key)  # noqa: E731
    async with scripted_gateway(script) as (port, _), started(port, 200, 1, offered_per_s=400.0) as burst:
        results = burst.results()
    assert results.errors == 0
    assert 0.49 < results.burst_wall_s < 2
    for number, buyer in enumerate(results.buyers):
        arrived_s = number / 400.0
        assert buyer.answered_at_s >= arrived_s
        assert buyer.latency_ms / 1000 == pytest.approx(buyer.answered_at_s - arrived_s, abs=1e-6)


async def test_with_one_attempt_a_buyer_told_429_is_answered() -> None:
    script: Script = lambda *_: (429, {"reason": "OVERLOADED", "retry_after_ms": 1}, "")  # noqa: E731
    async with scripted_gateway(script) as (port, _), started(port, 5, 5, attempts_max=1) as burst:
        results = burst.results()
    assert [buyer.first_status for buyer in results.buyers] == [429] * 5
    assert (results.shed_429, results.errors) == (5, 0)


async def test_buyers_who_leave_hang_up_once_and_are_no_errors() -> None:
    leaving = {f"key-{number}" for number in range(100) if is_among(number, 0.2)}
    async with (
        deaf_gateway(leaving.__contains__) as (port, requests, hang_ups),
        started(port, users=100, connections=10, gone_share=0.2) as burst,
    ):
        results = burst.results()
    assert len(leaving) == 20
    assert hang_ups == Counter(leaving)
    assert requests == Counter(f"key-{number}" for number in range(100))
    for number, buyer in enumerate(results.buyers):
        told = (0, "LEFT", "") if f"key-{number}" in leaving else (202, "", f"id-of-key-{number}")
        assert (buyer.first_status, buyer.first_reason, buyer.purchase_id) == told
    assert results.errors == results.shed_429 == 0


async def test_the_refused_try_again_only_as_many_as_there_is_stock() -> None:
    stock = 0
    winners: set[str] = set()

    def script(key: str, attempt: int) -> Reply:
        if key not in winners and len(winners) >= stock:
            return SOLD_OUT
        winners.add(key)
        return accepted(key)

    async with scripted_gateway(script) as (port, attempts), started(port, users=100, connections=10) as burst:
        assert burst.progress().hoping == 100
        stock = 3
        burst.on_stock(3)
        burst.on_stock(3)
        await burst.quiet(5)
        results = burst.results()
        assert burst.progress().in_flight == 0
        assert burst.progress().hoping == 97
    assert sum(attempts.values()) == 100 + 3 + STOCK_MARGIN
    assert len(winners) == 3
    assert Counter(item.first_reason for item in results.buyers) == {"SOLD_OUT": 100}
    assert sum(item.status == 202 for item in results.buyers) == 3


async def test_a_single_request_gets_its_whole_answer_or_a_load_error() -> None:
    shed: Reply = (429, {"reason": "OVERLOADED", "retry_after_ms": 1200}, "Retry-After: 2\r\n")
    script: Script = lambda key, _: None if key == "broken" else accepted(key) if key == "won" else shed  # noqa: E731
    async with scripted_gateway(script) as (port, attempts):
        plan = LoadPlan(*purchases_at(f"http://127.0.0.1:{port}", "x"), "", [])
        won, lost = [await ask_once(plan, Buyer("ann", "token", key)) for key in ("won", "lost")]
        with pytest.raises(LoadError, match="broken was not answered"):
            await ask_once(plan, Buyer("ann", "token", "broken"))
    assert (won.status, won.retry_after_s, facts_of(won.body).purchase_id) == (202, None, "id-of-won")
    assert (lost.status, lost.retry_after_s, facts_of(lost.body).reason) == (429, 2, "OVERLOADED")
    assert set(attempts.values()) == {1}


async def test_a_sample_goes_on_until_the_flood_is_over_and_bears_no_other_answer() -> None:
    refusal, asker = Refusal(429, "OVERLOADED", returns=True), Asker("x", "ann", "token")
    flood: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def script(key: str, _: int) -> Reply:
        if key == "sample-2" and not flood.done():
            flood.set_result(None)
        return 429, {"reason": "OVERLOADED"}, "Retry-After: 1\r\n"

    async with scripted_gateway(script) as (port, _):
        assert await asker.sample(f"http://127.0.0.1:{port}", refusal, flood) == 3
    for other in (
        SOLD_OUT,
        (429, {"reason": "OVERLOADED"}, ""),
        (429, {"reason": "USER_RATE_LIMITED"}, "Retry-After: 1\r\n"),
    ):
        flood = asyncio.get_running_loop().create_future()
        async with scripted_gateway(lambda *_, other=other: other) as (port, _):
            with pytest.raises(LoadError, match="instead of"):
                await asker.sample(f"http://127.0.0.1:{port}", refusal, flood)


def test_an_answer_is_cut_however_it_is_split() -> None:
    whole = rendered((429, {"reason": "OVERLOADED"}, "Retry-After: 2\r\nConnection: close\r\n"))
    for cut in range(len(whole)):
        assert cut_answer(whole[:cut]) is None
    answer = cut_answer(whole + b"rest")
    assert answer is not None
    assert (answer.status, answer.rest, answer.closes) == (429, b"rest", True)
    assert retry_delay_ms(answer, facts_of(answer.body)) == 2000


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70_000])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(AnswerError):
        cut_answer(data)


def test_a_body_that_is_no_object_has_no_facts() -> None:
    assert facts_of(b"<html>").reason == facts_of(b"[]").reason == ""
