"""One value that many ask for: read once for all of them, and believed for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedValue(Generic[Value]):
    """What ``read`` returned, at most ``age_s_max`` seconds old. Whoever asks while it is being read waits for that
    reading, and has its error if it fails; nobody who gives up takes it from the others."""

    def __init__(self, read: Callable[[], Awaitable[Value]], age_s_max: float) -> None:
        self._read = read
        self._age_s_max = age_s_max
        self._reading: asyncio.Future[Value] | None = None
        self._read_at = float("-inf")

    async def get(self) -> Value:
        """The value. Raises what ``read`` raises."""
        reading, now = self._reading, asyncio.get_running_loop().time()
        if reading is None or (reading.done() and (now > self._read_at + self._age_s_max or _failed(reading))):
            reading = self._reading = asyncio.ensure_future(self._read())
            reading.add_done_callback(self._ended)
        return await asyncio.shield(reading)

    def _ended(self, reading: "asyncio.Future[Value]") -> None:
        self._read_at = asyncio.get_running_loop().time()
        # Whoever asked may be gone by now.
        _failed(reading)


def _failed(reading: "asyncio.Future[Value]") -> bool:
    return reading.cancelled() or reading.exception() is not None
