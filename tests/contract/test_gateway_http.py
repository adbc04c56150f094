"""HTTP/1.1 as clients, proxies and attackers speak it."""

import asyncio
import re

import pytest

from gateway.local_tokens import issue
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness, reading

GET = b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


async def exchange(h: Harness, *pieces: bytes, answers: int = 1, pause_s: float = 0.0) -> tuple[bytes, bool]:
    """Sends the pieces one after the other; all that came until so many answers were there, or the end, and whether
    the connection is still open after that."""
    reader, writer = await h.connect()
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)
    octets = b""
    async with asyncio.timeout(5):
        while len(re.findall(rb"HTTP/1.1 [2-5]\d\d ", octets)) < answers:
            more = await reader.read(65536)
            if not more:
                return octets, False
            octets += more
    try:
        async with asyncio.timeout(0.1):
            while more := await reader.read(65536):
                octets += more
            return octets, False
    except TimeoutError:
        return octets, True


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with harness() as h:
        requests = [f"GET /v1/nothing/{n} HTTP/1.1\r\nhost: t\r\n\r\n".encode() for n in range(3)] + [GET] * 30
        octets, open_after = await exchange(h, b"".join(requests), answers=33)
        assert re.findall(rb"HTTP/1.1 (\d+)", octets) == [b"404"] * 3 + [b"200"] * 30
        assert open_after


async def test_a_request_may_come_octet_by_octet() -> None:
    async with harness() as h:
        octets, open_after = await exchange(h, *(bytes([octet]) for octet in GET))
        assert octets.startswith(OK)
        assert open_after


@pytest.mark.parametrize(
    ("request_", "says", "open_after"),
    [
        (b"GET /healthz HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n", b"connection: close", False),
        (GET, b"date: ", True),
        (b"GET http://proxy/healthz?x=1 HTTP/1.1\r\nhost: t\r\n\r\n", b"", True),
    ],
)
async def test_a_connection_stays_open_as_long_as_both_sides_want(
    request_: bytes, says: bytes, open_after: bool
) -> None:
    async with harness() as h:
        octets, stays = await exchange(h, request_)
        assert octets.startswith(OK)
        assert says in octets
        assert stays is open_after


async def test_an_answer_to_head_has_no_body() -> None:
    async with harness() as h:
        octets, open_after = await exchange(h, b"HEAD /healthz HTTP/1.1\r\nhost: t\r\n\r\n" + GET, answers=2)
        head, _, rest = octets.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405")
        assert b"content-length: 0" not in head
        assert rest.startswith(OK)
        assert open_after


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with harness() as h:
        head = (
            f"POST /v1/sales/{SALE}/purchases HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}\r\n"
            "idempotency-key: key\r\nexpect: 100-continue\r\ncontent-length: 14\r\n\r\n"
        )
        reader, writer = await h.connect()
        writer.write(head.encode())
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b'{"quantity":1}')
            assert (await reader.readline()).startswith(b"HTTP/1.1 202")


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked, identity",
        b"content-length : 5",
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: +5",
        b"x: a\r\n b",
        b"x: a\rb: c",
        b"x: \x00",
    ],
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(head: bytes) -> None:
    async with harness() as h:
        smuggled = b"POST /healthz HTTP/1.1\r\nhost: t\r\n" + head + b"\r\n\r\n0\r\n\r\n" + GET
        octets, open_after = await exchange(h, smuggled, answers=1)
        assert not octets.startswith(OK)
        assert octets.count(b"200 OK") == 0
        assert not open_after


async def test_a_stream_may_be_followed_by_another_request_on_its_connection() -> None:
    async with harness(stream_s=0.2) as h:
        await h.inventories.push(reading(5, reset=True))
        request = f"GET /v1/sales/{SALE}/stock/stream HTTP/1.1\r\nhost: t\r\n\r\n".encode()
        octets, open_after = await exchange(h, request + GET, answers=2)
        assert b"\r\n0\r\n\r\n" in octets
        assert octets.count(b"200 OK") == 2
        assert open_after
