"""A TCP proxy between two parts of the mesh that breaks what passes through it, on command and countably.

The proxies of the package index add latency or end connections at most. What is needed here are resets in the middle of
a reply, silence in one direction and lost packets, switched while the loop of the tested code may be busy.
"""

import asyncio
import copy
import ctypes
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")
Address = tuple[str, int]
Side = Literal["client", "server"]
Direction = Literal["to_server", "to_client"]

#: Bytes read at once, and bytes of one direction of a connection that may wait here before reading pauses.
_CHUNK_BYTES, BUFFER_BYTES_MAX = 64 * 1024, 256 * 1024
_CONNECTIONS_MAX = 4_096
_CONNECT_S_MAX, _COMMAND_S_MAX = 5.0, 5.0
_BOTH: frozenset[Direction] = frozenset(("to_server", "to_client"))
_FROM: dict[Direction, Side] = {"to_server": "client", "to_client": "server"}
_TO: dict[Direction, Side] = {"to_server": "server", "to_client": "client"}
_RESET_AT_ONCE = struct.pack("ii", 1, 0)

# Linux: a socket filter of one instruction, "keep 0 bytes". The kernel then drops every packet that arrives at the
# socket as if the network had lost it: nothing is acknowledged, and the sender retransmits.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO, _MEMINFO_DROPS = 26, 27, 55, 8
_KEEP_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_FILTER = struct.pack("HL", 1, ctypes.addressof(_KEEP_NOTHING))


def _dropped_packets(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
    return int(struct.unpack_from("I", info, 4 * _MEMINFO_DROPS)[0])


@dataclass
class Counters:
    """What a proxy has seen since it began."""

    connections: int = 0
    #: Open at this moment, those that only one side still knows of included.
    connections_open: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    #: Bytes that somebody sent and nobody gets.
    bytes_swallowed: int = 0
    #: Most bytes that one direction of one connection had waiting here.
    bytes_waiting_max: int = 0
    #: Connections that the client saw end by a reset.
    resets: int = 0
    #: How often each fault took effect, by the name of the method that switches it on.
    effects: Counter[str] = field(default_factory=Counter)


@dataclass
class _Faults:
    """The faults that are on."""

    cut: bool = False
    unplugged: bool = False
    holes: frozenset[Direction] = frozenset()
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    stall_probability: float = 0.0
    stall_s: tuple[float, float] = (0.0, 0.0)
    #: Where to cut each of the next replies; None is a random point.
    reply_cuts: deque[int | None] = field(default_factory=deque)


class _Pipe:
    """One direction of a connection. Reads no more while much is waiting, so a slow reader slows the writer."""

    def __init__(self, connection: "_Connection", direction: Direction) -> None:
        self._connection = connection
        self._proxy = connection.proxy
        self._loop = connection.proxy.loop
        self._direction: Direction = direction
        #: When each piece is due, and the piece: b"" is the end of the stream, None a reset.
        self._waiting: deque[tuple[float, bytes | memoryview | None]] = deque()
        self._waiting_bytes = 0
        self._free_at = 0.0
        self._due = 0.0
        self._cut_after: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading = False
        self._read_all = False
        self.done = False

    def read(self) -> None:
        """Reads, unless the stream has ended or too much is waiting."""
        source = self._connection.sockets.get(_FROM[self._direction])
        wanted = not self._read_all and self._waiting_bytes < BUFFER_BYTES_MAX
        if source is None or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(source, self._readable)
        else:
            self._loop.remove_reader(source)

    def stop(self) -> None:
        """Reads and sends no more."""
        self._read_all, self._reading = True, False
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def release(self) -> None:
        """Lets everything that waits be due now."""
        self._free_at = self._due = 0.0
        self._waiting = deque((0.0, piece) for _, piece in self._waiting)
        self.send()

    def _readable(self) -> None:
        faults = self._proxy.faults
        size = min(_CHUNK_BYTES, max(1, int(faults.bytes_per_s / 20))) if faults.bytes_per_s else _CHUNK_BYTES
        try:
            data = self._connection.sockets[_FROM[self._direction]].recv(size)
        except BlockingIOError:
            return
        except OSError:
            self._connection.broke(_FROM[self._direction])
            return
        self._read_all = not data
        in_hole = self._direction in faults.holes
        if in_hole or _TO[self._direction] not in self._connection.sockets:
            self._swallow(data, in_hole=in_hole)
        elif data:
            self._accept(data)
        else:
            self._put(b"")
        self.read()

    def _swallow(self, data: bytes, *, in_hole: bool) -> None:
        self._proxy.counters.bytes_swallowed += len(data)
        if in_hole:
            self._connection.gap = True
            self._proxy.counters.effects["black_hole"] += 1
        elif not data:
            self._connection.end(reset=False)

    def _accept(self, data: bytes) -> None:
        cuts = self._proxy.faults.reply_cuts
        if self._direction == "to_client" and self._cut_after is None and cuts:
            point = cuts.popleft()
            self._cut_after = self._proxy.random.randrange(len(data)) if point is None else point
        if self._cut_after is None:
            self._put(data)
        elif self._cut_after >= len(data):
            self._cut_after -= len(data)
            self._put(data)
        else:
            self._read_all = True
            if self._cut_after:
                self._put(data[: self._cut_after])
            self._put(None)

    def _put(self, piece: bytes | None) -> None:
        """Schedules a piece after those before it."""
        faults, effects, now = self._proxy.faults, self._proxy.counters.effects, self._loop.time()
        due = now
        if faults.delay_s or faults.jitter_s:
            due += faults.delay_s + self._proxy.random.uniform(0.0, faults.jitter_s)
            effects["delay"] += 1
        if faults.stall_probability and self._proxy.random.random() < faults.stall_probability:
            due += self._proxy.random.uniform(*faults.stall_s)
            effects["lossy"] += 1
        if faults.bytes_per_s and piece:
            self._free_at = max(self._free_at, now) + len(piece) / faults.bytes_per_s
            due = max(due, self._free_at)
            effects["throttle"] += 1
        self._due = max(self._due, due)
        self._waiting.append((self._due, piece))
        self._waiting_bytes += len(piece or b"")
        counters = self._proxy.counters
        counters.bytes_waiting_max = max(counters.bytes_waiting_max, self._waiting_bytes)
        self.send()

    def send(self) -> None:
        """Sends what is due, and comes back by itself for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        target = self._connection.sockets.get(_TO[self._direction])
        if target is None:
            self._waiting.clear()
            self._waiting_bytes = 0
            return
        if self._proxy.faults.unplugged:
            return
        self._loop.remove_writer(target)
        while self._waiting:
            due, piece = self._waiting[0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self.send)
                break
            if not piece:
                self._send_end(target, reset=piece is None)
                return
            try:
                sent = target.send(piece)
            except BlockingIOError:
                self._loop.add_writer(target, self.send)
                break
            except OSError:
                self._connection.broke(_TO[self._direction])
                return
            self._sent(due, piece, sent)
        self.read()

    def _sent(self, due: float, piece: bytes | memoryview, sent: int) -> None:
        self._waiting.popleft()
        if sent < len(piece):
            self._waiting.appendleft((due, memoryview(piece)[sent:]))
        self._waiting_bytes -= sent
        if self._direction == "to_server":
            self._proxy.counters.bytes_to_server += sent
        else:
            self._proxy.counters.bytes_to_client += sent

    def _send_end(self, target: socket.socket, *, reset: bool) -> None:
        self._waiting.clear()
        if reset:
            self._connection.end(reset=True, cause="reset_in_reply")
            return
        self.done = True
        try:
            target.shutdown(socket.SHUT_WR)
        except OSError:
            self._connection.broke(_TO[self._direction])
            return
        if all(pipe.done for pipe in self._connection.pipes):
            self._connection.end(reset=False)


class _Connection:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, proxy: "TcpProxy", client: socket.socket) -> None:
        self.proxy = proxy
        #: The sides that are still there.
        self.sockets: dict[Side, socket.socket] = {"client": client}
        self.pipes = (_Pipe(self, "to_server"), _Pipe(self, "to_client"))
        #: Whether something was lost, so that the stream may not go on.
        self.gap = False

    def begin(self, server: socket.socket | None) -> None:
        """Lets bytes pass; without a server what the client sends is lost."""
        if server is not None:
            self.sockets["server"] = server
        for pipe in self.pipes:
            pipe.read()

    def broke(self, side: Side) -> None:
        """One side is gone: the other is told, unless that message is lost as well."""
        told: Direction = "to_server" if side == "client" else "to_client"
        if told not in self.proxy.faults.holes:
            self.end(reset=True)
            return
        self.gap = True
        self.proxy.counters.effects["black_hole"] += 1
        self.drop(side)
        if not self.sockets:
            self.end(reset=False)

    def drop(self, side: Side) -> None:
        """Closes one side with a reset and tells the other nothing."""
        sock = self.sockets.pop(side, None)
        if sock is not None:
            self._close(sock, reset=True)

    def end(self, *, reset: bool, cause: str = "") -> None:
        """Closes both sides; ``cause`` is the fault that did it."""
        if self not in self.proxy.connections:
            return
        self.proxy.connections.discard(self)
        for pipe in self.pipes:
            pipe.stop()
        if reset and "client" in self.sockets:
            self.proxy.counters.resets += 1
        if cause:
            self.proxy.counters.effects[cause] += 1
        for sock in self.sockets.values():
            self._close(sock, reset=reset)
        self.sockets.clear()

    def _close(self, sock: socket.socket, *, reset: bool) -> None:
        self.proxy.loop.remove_reader(sock)
        self.proxy.loop.remove_writer(sock)
        self.proxy.note_drops(sock)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        sock.close()


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
        self.faults = _Faults()
        self.counters = Counters()
        self.connections: set[_Connection] = set()
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
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self._drops.clear()
        self.faults = _Faults()
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
        connection = _Connection(self, client)
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

    async def _connect(self, connection: _Connection) -> None:
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
            connection.begin(server)
        else:
            server.close()
