"""Connections that only stay open, and viewers of a sale's stock: held by a process of their own.

`python -m bench.measures.bystanders HOST PORT COUNT [PATH]` opens them, prints a line, reads what comes, and holds them
until its standard input ends.
"""

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import uvloop

from bench.child import start_module
from bench.load.process import LoadError

_AT_ONCE = 64
_OPEN_S_MAX = 60.0


@asynccontextmanager
async def idle_connections(url: str, count: int) -> AsyncIterator[None]:
    """Connections on which one request was answered, and nothing is sent any more. Raises LoadError."""
    async with _held(url, count):
        yield


@asynccontextmanager
async def viewers(url: str, sale_id: str, count: int) -> AsyncIterator[None]:
    """Viewers of a sale's stock stream. Raises LoadError."""
    async with _held(url, count, f"/v1/sales/{sale_id}/stock/stream"):
        yield


@asynccontextmanager
async def _held(url: str, count: int, *path: str) -> AsyncIterator[None]:
    parts = urlsplit(url)
    process = await start_module("bench.measures.bystanders", str(parts.hostname), str(parts.port), str(count), *path)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(_OPEN_S_MAX):
                told = await process.stdout.readline()
        except TimeoutError as error:
            raise LoadError(f"{count:,} connections were not open within {_OPEN_S_MAX:.0f} s") from error
        if not told:
            raise LoadError(f"{count:,} connections could not be opened")
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def hold(host: str, port: int, count: int, path: str) -> None:
    """Opens ``count`` connections that each send one GET of ``path``, and holds them."""
    slots = asyncio.Semaphore(_AT_ONCE)
    request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode()
    readers = []

    async def one() -> None:
        async with slots:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            status = await reader.readline()
            if b" 200 " not in status:
                raise SystemExit(f"bystanders: {status!r}")
            readers.append((asyncio.ensure_future(_drain(reader)), writer))

    await asyncio.gather(*(one() for _ in range(count)))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    parent = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    await parent.read()


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


def main() -> int:
    """The process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port, count, *path = sys.argv[1:]
    uvloop.run(hold(host, int(port), int(count), path[0] if path else "/healthz"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
