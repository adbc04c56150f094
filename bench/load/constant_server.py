"""A server that answers every request with a constant 202, to measure the load generator's own ceiling.

`python -m bench.load.constant_server` prints the ceiling of this machine; with the argument `serve` it only serves and
prints its port.
"""

import asyncio
import contextlib
import sys
from typing import cast

import uvloop

from bench.child import start_module
from bench.load.plan import Buyer, LoadPlan, LoadResults, first_latencies
from bench.load.run import run_load
from bench.percentiles import percentile

_BODY = b'{"purchase_id":"00000000-0000-5000-8000-000000000000","state":"RESERVED"}'
ANSWER = (b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: " + str(len(_BODY)).encode()) + (
    b"\r\n\r\n" + _BODY
)
#: About as long as a real token of the gateway.
_TOKEN = "x" * 220
_BACKLOG = 8192


class _Constant(asyncio.Protocol):
    """Counts the requests that came in whole and answers each."""

    def __init__(self) -> None:
        self._unread = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        data = self._unread + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            length_at = data.find(b"Content-Length: ", 0, end)
            length = int(data[length_at + 16 : end].split(b"\r\n", 1)[0]) if length_at >= 0 else 0
            if len(data) < end + 4 + length:
                break
            data = data[end + 4 + length :]
            self._transport.write(ANSWER)
        self._unread = data


async def serve() -> None:
    """Serves on a free port of the loopback interface, prints it, and goes on until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Constant, "127.0.0.1", 0, backlog=_BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    parent = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    await parent.read()
    server.close()


async def _burst_against(port: int, users: int, connections: int) -> LoadResults:
    buyers = [Buyer(f"u{i:06}", _TOKEN, f"ceiling-{i:06}") for i in range(users)]
    plan = LoadPlan("127.0.0.1", port, f"/v1/sales/{'0' * 36}/purchases", "", buyers, connections)
    return await run_load(plan)


async def measure_ceiling(users: int = 50_000, connections: int = 2_000) -> LoadResults:
    """One burst against a constant server in a process of its own: what the generator itself can do here.

    Raises LoadError when the burst does not go through.
    """
    process = await start_module("bench.load.constant_server", "serve")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            port = int(await process.stdout.readline())
        return await _burst_against(port, users, connections)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> int:
    """Serves, or measures and prints one line."""
    if sys.argv[1:] == ["serve"]:
        uvloop.run(serve())
        return 0
    if sys.argv[1:]:
        sys.stderr.write("usage: python -m bench.load.constant_server [serve]\n")
        return 2
    results = uvloop.run(measure_ceiling())
    latencies = first_latencies(results.buyers)
    sys.stdout.write(
        f"the load generator's ceiling against a constant answer: {len(latencies):,} answers in"
        f" {results.burst_wall_s:.2f} s, {len(latencies) / results.burst_wall_s:,.0f}/s,"
        f" p50 {percentile(latencies, 50):.0f} ms, p99 {percentile(latencies, 99):.0f} ms, errors {results.errors}\n"
    )
    return 0 if results.errors == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
