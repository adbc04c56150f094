"""A peer that speaks HTTP/2 frame by frame, so that it can do what no gRPC client does."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
REFUSED_STREAM, ENHANCE_YOUR_CALM = 7, 11
#: Window of a stream and of a connection at first, bytes (RFC 9113, section 6.9.2).
WINDOW = 65_535
#: A header table of no size, so that every answer can be read by itself.
_NO_TABLE = b"\0\1\0\0\0\0"
_NO_WINDOW = b"\0\4\0\0\0\0"
#: Largest payload of a frame that every peer takes.
FRAME_BYTES_MAX = 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _length(number: int) -> bytes:
    """An HPACK integer of 7 bits prefix, without Huffman coding (RFC 7541, section 5.1)."""
    if number < 127:
        return bytes([number])
    octets, rest = [127], number - 127
    while rest >= 128:
        octets.append(rest % 128 | 128)
        rest //= 128
    return bytes([*octets, rest])


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Literals without indexing."""
    return b"".join(
        b"\0" + _length(len(name)) + name.encode() + _length(len(value)) + value.encode() for name, value in headers
    )


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    """The headers with which a gRPC call of the method at ``path`` begins."""
    common = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), ("te", "trailers")]
    return header_block([*common, ("content-type", "application/grpc"), *more])


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A length-prefixed gRPC message."""
    return bytes([compressed]) + len(payload).to_bytes(4, "big") + payload


class Http2Peer:
    """One connection. What comes back is counted by kind of frame; ``closed`` is set when the server hangs up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = -1
        self._allowed: Counter[int] = Counter()
        self.frames: Counter[int] = Counter()
        #: Streams that the server has reset, by error code.
        self.resets: Counter[int] = Counter()
        self.closed = asyncio.Event()
        #: Payload of the last GOAWAY, and of all HEADERS.
        self.goaway = b""
        self.answers = b""

    @property
    def statuses(self) -> list[int]:
        """The gRPC status of every call that has been answered."""
        # With the length of the name before it, for there is grpc-status-details-bin too.
        parts = self.answers.split(b"\x0bgrpc-status")[1:]
        return [int(each[1 : 1 + each[0]]) for each in parts]

    def new_stream(self) -> int:
        """The number of the next stream."""
        self._stream += 2
        return self._stream

    async def send(self, octets: bytes) -> bool:
        """Sends; false when the server has hung up."""
        if self.closed.is_set():
            return False
        try:
            self._writer.write(octets)
            await self._writer.drain()
        except ConnectionError:
            return False
        return True

    def room(self, stream: int, sent: int, sent_in_all: int) -> int:
        """How many bytes the server's windows let it send now on ``stream``."""
        return min(WINDOW + self._allowed[stream] - sent, WINDOW + self._allowed[0] - sent_in_all)

    async def read(self) -> None:
        """Takes what comes until the server hangs up."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                await self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        self.closed.set()

    async def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames[kind] += 1
        if kind == WINDOW_UPDATE:
            self._allowed[stream] += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            await self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            await self.send(frame(PING, ACK, 0, payload))
        elif kind == HEADERS:
            self.answers += payload
        elif kind == RST_STREAM:
            self.resets[int.from_bytes(payload, "big")] += 1
        elif kind == GOAWAY:
            self.goaway = payload

    async def greeted(self) -> None:
        """Waits until both sides have said hello, after which the server sends nothing by itself for a while: whatever
        it says is answered, which must not happen in the midst of a header block."""
        async with asyncio.timeout(10):
            while self.frames[SETTINGS] < 2:
                await asyncio.sleep(0.001)

    async def settled(self, quiet_s: float = 0.3, within_s: float = 10.0) -> None:
        """Waits until the server has hung up or nothing more comes for a while."""
        async with asyncio.timeout(within_s):
            seen = -1
            while not self.closed.is_set() and seen != (seen := self.frames.total()):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closed.wait(), quiet_s)


@asynccontextmanager
async def http2_peer(port: int, *, greet: bool = True, deaf: bool = False) -> AsyncIterator[Http2Peer]:
    """A connection to 127.0.0.1:``port``, with the client's preface sent if ``greet``; a ``deaf`` one has a window
    of no size, so that no answer can be sent to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    peer = Http2Peer(reader, writer)
    reading = asyncio.get_running_loop().create_task(peer.read())
    try:
        if greet:
            await peer.send(PREFACE + frame(SETTINGS, 0, 0, _NO_TABLE + _NO_WINDOW * deaf))
        yield peer
    finally:
        reading.cancel()
        await asyncio.wait({reading})
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
