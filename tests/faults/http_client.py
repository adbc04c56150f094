"""A client of the gateways as a buyer's device is one: keep-alive connections that break, answers that never come."""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass

from bench.load.http_answers import Answer, AnswerError, Facts, cut_answer, facts_of, retry_delay_ms

Address = tuple[str, int]


class NoAnswerError(Exception):
    """The connection could not be made, broke, or stayed silent: nobody knows what became of the request."""


@dataclass(frozen=True)
class Reply:
    """An answer and what a buyer needs of it."""

    status: int
    facts: Facts
    retry_s: float


class HttpClient:
    """Connections to any number of addresses, each used by one request at a time. Close it in the end."""

    def __init__(self, *, answer_s_max: float = 5.0) -> None:
        self._answer_s_max = answer_s_max
        self._idle: defaultdict[Address, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(list)

    async def request(
        self, address: Address, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> Reply:
        """One request. Raises NoAnswerError, at the latest after ``answer_s_max`` seconds."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {address[0]}:{address[1]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(body)}", "", ""]
        octets = "\r\n".join(lines).encode("latin-1") + body
        writer = None
        try:
            async with asyncio.timeout(self._answer_s_max):
                idle = self._idle[address]
                reader, writer = idle.pop() if idle else await asyncio.open_connection(*address)
                writer.write(octets)
                await writer.drain()
                answer = await _read(reader)
        # RuntimeError is what uvloop raises for a write to a connection that has just been reset.
        except (OSError, TimeoutError, AnswerError, asyncio.IncompleteReadError, RuntimeError) as error:
            if writer is not None:
                writer.close()
            raise NoAnswerError(type(error).__name__) from error
        except asyncio.CancelledError:
            if writer is not None:
                writer.close()
            raise
        if answer.closes:
            writer.close()
        else:
            self._idle[address].append((reader, writer))
        facts = facts_of(answer.body)
        return Reply(answer.status, facts, retry_delay_ms(answer, facts) / 1000)

    async def close(self) -> None:
        """Closes every connection."""
        for idle in self._idle.values():
            for _, writer in idle:
                writer.close()
            for _, writer in idle:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        self._idle.clear()


async def _read(reader: asyncio.StreamReader) -> Answer:
    octets = b""
    while True:
        more = await reader.read(65_536)
        if not more:
            raise asyncio.IncompleteReadError(octets, None)
        octets += more
        answer = cut_answer(octets)
        if answer is not None:
            return answer
