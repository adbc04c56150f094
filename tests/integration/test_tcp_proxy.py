"""What each fault of the proxy looks like from outside, and that it is counted."""

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import pytest
import uvloop

from tests.faults.links import Links, ProxyThread, proxied, upstreams
from tests.faults.tcp_pipes import BUFFER_BYTES_MAX
from tests.faults.tcp_proxy import TcpProxy
from tests.support.waiting import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: More than the kernel keeps for a reader that does not read, both sides of a proxy together.
FLOOD_BYTES = 32 * 1024 * 1024


@dataclass
class Echo:
    """A server that sends back what it gets, and knows what it got."""

    port: int = 0
    received: bytearray = field(default_factory=bytearray)
    ends: list[type[BaseException] | None] = field(default_factory=list)
    #: Reads nothing while it is not set.
    reading: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end: type[BaseException] | None = None
        try:
            await self.reading.wait()
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except ConnectionError as error:
            end = type(error)
        finally:
            self.ends.append(end)
            writer.close()


@asynccontextmanager
async def echoing() -> AsyncIterator[Echo]:
    echo = Echo()
    echo.reading.set()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    try:
        yield echo
    finally:
        server.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with echoing() as made:
        yield made


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with ProxyThread() as thread:
        yield thread.start(("127.0.0.1", echo.port), seed=7)


@asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def told(streams: Streams, text: bytes, within_s: float = 2.0) -> bytes:
    """What comes back for a text."""
    streams[1].write(text)
    async with asyncio.timeout(within_s):
        return await streams[0].readexactly(len(text))


async def silent(streams: Streams, text: bytes = b"?") -> None:
    """Sends a text and insists that for a while nothing happens at all."""
    streams[1].write(text)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await streams[0].read(1)


async def reset(streams: Streams, text: bytes = b"") -> bytes:
    """Insists on the connection being reset; what came before that."""
    if text:
        streams[1].write(text)
    got = b""
    try:
        async with asyncio.timeout(2):
            while data := await streams[0].read(65536):
                got += data
    except ConnectionResetError:
        return got
    raise AssertionError("the stream ended without a reset")


async def refused(proxy: TcpProxy) -> None:
    """Insists on a new connection being reset, while it is made or just after."""
    with pytest.raises(ConnectionResetError):
        async with connected(proxy) as (reader, _):
            await reader.read(1)


async def works_anew(proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        assert await told(streams, b"anew") == b"anew"


async def test_without_a_fault_all_bytes_and_both_ends_arrive(echo: Echo, proxy: TcpProxy) -> None:
    sent = random.Random(1).randbytes(3_000_000)
    async with connected(proxy) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
    assert (bytes(echo.received), echo.ends) == (sent, [None])
    counters = proxy.count()
    assert (counters.bytes_to_server, counters.bytes_to_client) == (len(sent), len(sent))
    assert (counters.connections, counters.connections_open, counters.resets) == (1, 0, 0)
    assert not counters.effects


async def test_a_server_that_is_not_there_resets_the_client() -> None:
    with ProxyThread() as thread, socket.create_server(("127.0.0.1", 0)) as gone:
        proxy = thread.start(gone.getsockname())
        gone.close()
        await refused(proxy)


async def test_a_cut_resets_all_and_refuses_new_ones_until_healed(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        proxy.cut()
        await reset(streams)
    await refused(proxy)
    assert proxy.count().effects == {"cut": 2}
    assert bytes(echo.received) == b"hello"
    proxy.heal()
    await works_anew(proxy)


async def test_a_single_cut_leaves_new_connections_alone(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        proxy.cut_once()
        await reset(streams)
    await works_anew(proxy)
    assert proxy.count().effects == {"cut_once": 1}
    assert ConnectionResetError in echo.ends


@pytest.mark.parametrize("direction", ["to_server", "to_client", "both"])
async def test_a_black_hole_swallows_one_direction_and_resets_when_healed(
    echo: Echo, proxy: TcpProxy, direction: str
) -> None:
    async with connected(proxy) as before, connected(proxy) as untouched:
        await told(before, b"1")
        await told(untouched, b"2")
        proxy.black_hole(direction)  # type: ignore[arg-type]
        await silent(before, b"lost")
        async with connected(proxy) as new:
            await silent(new, b"lost")
            assert bytes(echo.received).count(b"lost") == (2 if direction == "to_client" else 0)
            counters = proxy.count()
            assert counters.bytes_swallowed == 8
            assert counters.effects["black_hole"] >= 2
            proxy.heal()
            await reset(before)
            await reset(new)
        assert await told(untouched, b"3") == b"3"
    await works_anew(proxy)


async def test_in_a_black_hole_the_server_does_not_hear_of_a_client_that_went(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        proxy.black_hole("to_server")
    async with connected(proxy) as streams:
        # A turn of the proxy after the client went.
        await silent(streams)
    assert echo.ends == []
    proxy.heal()

    async def heard() -> bool:
        return echo.ends == [ConnectionResetError]

    await eventually(heard)


async def test_pulling_the_cable_loses_packets_but_no_stream(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        proxy.unplug()
        await silent(streams, b"patience")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.open_connection("127.0.0.1", proxy.port)
        assert proxy.count().effects["unplug"] >= 3
        proxy.heal()
        async with asyncio.timeout(3):
            assert await streams[0].readexactly(8) == b"patience"
    assert proxy.count().resets == 0


async def test_without_acknowledgements_the_kernel_gives_up_in_time(proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        streams[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        proxy.unplug()
        streams[1].write(b"?")
        with pytest.raises(TimeoutError, match="Connection timed out"):
            await asyncio.wait_for(streams[0].read(1), 3)


async def test_a_delay_holds_each_way_back_and_keeps_order(proxy: TcpProxy) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.delay(0.1, 0.05)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(100):
            writer.write(b"%04d" % number)
            await asyncio.sleep(0)
        assert await reader.readexactly(400) == b"".join(b"%04d" % number for number in range(100))
        assert 0.2 <= loop.time() - began < 1.0
        assert proxy.count().effects["delay"] >= 2
        proxy.delay(30)
        writer.write(b"held back")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        proxy.heal()
        assert await reader.readexactly(9) == b"held back"


async def test_a_throttle_bounds_the_rate(proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        proxy.throttle(100_000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await told(streams, bytes(50_000), within_s=5)
        assert 0.45 <= loop.time() - began < 2
    assert proxy.count().effects["throttle"] >= 10


async def test_losses_stall_a_stream_now_and_then(proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        proxy.lossy(0.2)
        times = []
        for number in range(10):
            began = asyncio.get_running_loop().time()
            assert await told(streams, b"%d" % number) == b"%d" % number
            times.append(asyncio.get_running_loop().time() - began)
        stalls = proxy.count().effects["lossy"]
        assert 1 <= stalls < 10
        assert 0.2 <= max(times) < 1.5
        assert min(times) < 0.1


@pytest.mark.parametrize("after_bytes", [0, 1, 150, None])
async def test_a_reply_is_cut_in_its_middle(proxy: TcpProxy, after_bytes: int | None) -> None:
    async with connected(proxy) as streams:
        assert await told(streams, b"whole") == b"whole"
        proxy.reset_in_reply(after_bytes)
        got = await reset(streams, b"x" * 200)
        assert len(got) < 200 if after_bytes is None else len(got) == after_bytes
    assert proxy.count().effects == {"reset_in_reply": 1}
    await works_anew(proxy)


async def test_a_half_open_connection_is_silent_for_the_client_only(echo: Echo, proxy: TcpProxy) -> None:
    async with connected(proxy) as streams:
        await told(streams, b"hello")
        proxy.half_open()

        async def server_heard() -> bool:
            return echo.ends == [ConnectionResetError]

        await eventually(server_heard)
        await silent(streams)
        await works_anew(proxy)
        proxy.heal()
        await reset(streams)
    assert proxy.count().effects == {"half_open": 1}


async def test_a_slow_reader_slows_the_writer_and_bounds_what_waits(echo: Echo, proxy: TcpProxy) -> None:
    echo.reading.clear()
    async with connected(proxy) as (reader, writer):
        writer.transport.set_write_buffer_limits(high=65536)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < FLOOD_BYTES:
                writer.write(bytes(65536))
                sent += 65536
                await writer.drain()

        flooding = asyncio.ensure_future(flood())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(flooding), 0.5)
        assert sent < FLOOD_BYTES
        assert proxy.count().bytes_waiting_max <= BUFFER_BYTES_MAX + 65536
        echo.reading.set()
        await asyncio.wait_for(asyncio.gather(flooding, reader.readexactly(FLOOD_BYTES)), 10)
    assert proxy.count().bytes_waiting_max <= BUFFER_BYTES_MAX + 65536


def test_a_proxy_obeys_any_thread_while_the_loop_of_its_user_is_blocked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ProxyThread() as thread:
        proxy = thread.start(listener.getsockname())
        client = socket.create_connection(("127.0.0.1", proxy.port), timeout=2)
        server, _ = listener.accept()
        with closing(client), closing(server):
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"
            orders: list[Callable[[], object]] = [
                lambda: proxy.delay(0.001),
                proxy.heal,
                lambda: proxy.count(),
                lambda: proxy.throttle(1e6),
                lambda: proxy.reset_in_reply(10_000),
            ]

            def order() -> None:
                for number in range(200):
                    orders[number % len(orders)]()

            threads = [threading.Thread(target=order) for _ in range(4)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            proxy.heal()
            server.sendall(b"still here")
            assert client.recv(100) == b"still here"
            proxy.cut_once()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_proxy_works_in_the_loop_that_enters_it() -> None:
    async def main() -> None:
        async with echoing() as echo, TcpProxy(("127.0.0.1", echo.port)) as proxy:
            async with connected(proxy) as streams:
                assert await told(streams, b"hello") == b"hello"
                proxy.cut()
                await reset(streams)
            await refused(proxy)

    uvloop.run(main())


def test_settings_lead_through_the_links_and_keep_all_else() -> None:
    environment = {
        "GATEWAY_URL": "http://127.0.0.1:7080",
        "GATEWAY_URLS": "http://127.0.0.1:7080,http://127.0.0.1:7180",
        "GATEWAY_PURCHASE_TARGET": "ipv4:127.0.0.1:7053,127.0.0.1:7153",
        "PURCHASE_INVENTORY_TARGET": "127.0.0.1:7051",
        "INVENTORY_DATABASE_URL": "postgresql://inventory:a:17@127.0.0.1:7432/inventory",
        "PURCHASE_LISTEN": "127.0.0.1:7053",
    }
    found = upstreams(environment)
    assert found["gateway->purchase"] == ["127.0.0.1:7053", "127.0.0.1:7153"]
    with Links(found) as links:
        settings = proxied(environment, links)
        first, second = (proxy.address for proxy in links["gateway->purchase"].proxies)
        (database,) = links["inventory->postgres"].proxies
        assert settings["GATEWAY_PURCHASE_TARGET"] == f"ipv4:{first},{second}"
        assert settings["INVENTORY_DATABASE_URL"] == f"postgresql://inventory:a:17@{database.address}/inventory"
        assert settings["GATEWAY_URLS"].startswith(settings["GATEWAY_URL"] + ",http://127.0.0.1:")
        assert set(settings) == set(environment) - {"PURCHASE_LISTEN"}
        links["gateway->purchase"].cut()
        links.heal()
        assert links["gateway->purchase"].effect("cut") == 0
