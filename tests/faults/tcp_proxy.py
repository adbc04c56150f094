"""A TCP proxy between two parts of the mesh that breaks what passes through it, on command and countably.

The proxies of the package index add latency or end connections at most. What is needed here are resets in the middle of
a reply, silence in one direction and lost packets, switched while the loop of the tested code may be busy.
"""

import asyncio
import contextlib
import copy
import ctypes
import random
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeVar

from tests.faults.tcp_pipes import Connection, Counters, Direction, Faults

T = TypeVar("T")
Address = tuple[str, int]

_CONNECTIONS_MAX = 4_096
_CONNECT_S_MAX, _COMMAND_S_MAX = 5.0, 5.0
_BOTH: frozenset[Direction] = frozenset(("to_server", "to_client"))

# Linux: a socket filter of one instruction, "keep 0 bytes". The kernel then drops every packet that arrives at the
# socket as if the network had lost it: nothing is acknowledged, and the sender retransmits.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO, _MEMINFO_DROPS = 26, 27, 55, 8
_KEEP_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_FILTER = struct.pack("HL", 1, ctypes.addressof(_KEEP_NOTHING))


def _dropped_packets(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
    return int(struct.unpack_from("I", info, 4 * _MEMINFO_DROPS)[0])


class TcpProxy:
    """Passes TCP connections to ``target``, an IPv4 address and port, on ``port`` of 127.0.0.1, and breaks them on
    command. An async context manager that runs in the loop that enters it.

    Faults act on connections there are and on new ones, add up, and last until ``heal()``. Every method may be called
    from any thread, blocks until the fault is on, at most 5 s, and raises TimeoutError when the proxy's loop is busy
    for longer. Random choices come from ``seed``; how bytes fall into chunks is up to the kernel.
    """

    def __init__(self, target: Address, *, listen_port: int = 0, seed: int | str = 0) -> None:
        self.target = target
        self.port = listen_port
        self.random = random.Random(seed)
        self.faults = Faults()
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self._drops: dict[socket.socket, int] = {}
        self._connecting: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.loop.add_reader(self._listener, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self._end_all()

    @property
    def address(self) -> str:
        """host:port to connect to."""
        return f"127.0.0.1:{self.port}"

    def count(self) -> Counters:
        """What has happened until now, as a copy."""

        def snapshot() -> Counters:
            for sock in self._sockets():
                self.note_drops(sock)
            self.counters.connections_open = len(self.connections)
            return copy.deepcopy(self.counters)

        return self._run(snapshot)

    def cut(self) -> None:
        """Resets every connection, and each new one at once."""
        self._set(cut=True)
        self._run(lambda: self._end_all("cut"))

    def cut_once(self) -> None:
        """Resets every connection; new ones pass."""
        self._run(lambda: self._end_all("cut_once"))

    def black_hole(self, direction: Direction | Literal["both"] = "both") -> None:
        """Swallows what is sent in a direction, ends of streams and resets included, with connections left open. New
        connections are accepted; the server hears of them only if ``to_server`` is open. ``heal`` resets what has lost
        something. Bytes are acknowledged by this machine's kernel; see ``unplug`` for packets that nobody acknowledges.
        """
        self._set(holes=_BOTH if direction == "both" else self.faults.holes | {direction})

    def unplug(self) -> None:
        """Loses every packet, as a pulled cable does: nothing is acknowledged and nobody can connect. Streams go on
        after ``heal``, once the kernel retransmits, unless a side gave up. Counts the packets lost."""
        self._run(self._unplug)

    def delay(self, seconds: float, jitter_s: float = 0.0) -> None:
        """Adds ``seconds`` and up to ``jitter_s`` to each way; order is kept. Counts the chunks held back."""
        self._set(delay_s=seconds, jitter_s=jitter_s)

    def throttle(self, bytes_per_s: float) -> None:
        """Lets so many bytes a second pass, each connection and each way. Counts the chunks."""
        self._set(bytes_per_s=bytes_per_s)

    def lossy(self, probability: float = 0.05, shortest_s: float = 0.2, longest_s: float = 0.6) -> None:
        """Stalls a direction with this probability for each chunk, as waiting for a retransmission looks to a program.
        Counts the stalls."""
        self._set(stall_probability=probability, stall_s=(shortest_s, longest_s))

    def reset_in_reply(self, after_bytes: int | None = None, *, times: int = 1) -> None:
        """Resets the connections of the next ``times`` replies once their first ``after_bytes`` bytes, by default a
        random part of a chunk, have reached the client. What of the server's comes next is the reply."""
        self._run(lambda: self.faults.reply_cuts.extend([after_bytes] * times))

    def half_open(self) -> None:
        """Closes the server's side of every connection; the client's stays open and silent until ``heal`` resets it.
        New connections pass. Counts connections."""
        self._run(self._half_open)

    def heal(self) -> None:
        """Ends every fault. Connections that lost something are reset; what was held back is sent at once."""
        self._run(self._heal)

    def note_drops(self, sock: socket.socket) -> None:
        """Counts the packets lost at a socket since the last look."""
        if self.faults.unplugged:
            drops = _dropped_packets(sock)
            self.counters.effects["unplug"] += drops - self._drops.get(sock, 0)
            self._drops[sock] = drops

    def _run(self, work: Callable[[], T]) -> T:
        if threading.get_ident() == self._thread:
            return work()
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
                answer.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return answer.result(_COMMAND_S_MAX)

    def _set(self, **faults: Any) -> None:
        self._run(lambda: vars(self.faults).update(faults))

    def _sockets(self) -> list[socket.socket]:
        return [self._listener, *(sock for each in self.connections for sock in each.sockets.values())]

    def _end_all(self, cause: str = "") -> None:
        for connection in list(self.connections):
            connection.end(reset=True, cause=cause)

    def _unplug(self) -> None:
        self.faults.unplugged = True
        for sock in self._sockets():
            self._drops[sock] = _dropped_packets(sock)
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)

    def _half_open(self) -> None:
        for connection in self.connections:
            if len(connection.sockets) == 2:
                self.counters.effects["half_open"] += 1
                connection.gap = True
                connection.drop("server")

    def _heal(self) -> None:
        if self.faults.unplugged:
            for sock in self._sockets():
                self.note_drops(sock)
                # One that was connected in the same moment in which all were unplugged has none.
                with contextlib.suppress(FileNotFoundError):
                    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self._drops.clear()
        self.faults = Faults()
        for connection in list(self.connections):
            if connection.gap:
                connection.end(reset=True)
            for pipe in connection.pipes:
                pipe.release()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(self, client)
        self.connections.add(connection)
        self.counters.connections += 1
        if self.faults.cut or len(self.connections) > _CONNECTIONS_MAX:
            connection.end(reset=True, cause="cut" if self.faults.cut else "")
        elif "to_server" in self.faults.holes:
            connection.gap = True
            self.counters.effects["black_hole"] += 1
            connection.begin(None)
        else:
            task = self.loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: Connection) -> None:
        server = socket.socket()
        try:
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(_CONNECT_S_MAX):
                await self.loop.sock_connect(server, self.target)
        except BaseException as error:
            server.close()
            connection.end(reset=True)
            if not isinstance(error, OSError):
                raise
            return
        if connection in self.connections:
            if self.faults.unplugged:
                server.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)
            connection.begin(server)
        else:
            server.close()
