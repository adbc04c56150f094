"""The two directions of a proxied TCP connection, and what a fault does to the bytes that pass."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

Side = Literal["client", "server"]
Direction = Literal["to_server", "to_client"]

#: Bytes read at once, and bytes of one direction of a connection that may wait here before reading pauses.
_CHUNK_BYTES, BUFFER_BYTES_MAX = 64 * 1024, 256 * 1024
_FROM: dict[Direction, Side] = {"to_server": "client", "to_client": "server"}
_TO: dict[Direction, Side] = {"to_server": "server", "to_client": "client"}
_RESET_AT_ONCE = struct.pack("ii", 1, 0)


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
class Faults:
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


class Proxy(Protocol):
    """What a connection needs of the proxy that it passes through."""

    loop: asyncio.AbstractEventLoop
    random: random.Random
    faults: Faults
    counters: Counters
    connections: set[Connection]

    def note_drops(self, sock: socket.socket) -> None:
        """Counts the packets lost at a socket since the last look."""


class Pipe:
    """One direction of a connection. Reads no more while much is waiting, so a slow reader slows the writer."""

    def __init__(self, connection: Connection, direction: Direction) -> None:
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


class Connection:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self.proxy = proxy
        #: The sides that are still there.
        self.sockets: dict[Side, socket.socket] = {"client": client}
        self.pipes = (Pipe(self, "to_server"), Pipe(self, "to_client"))
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
