"""Lets holds and captures go before reads: settlement has a pace to keep, a flood of reads has none."""

import asyncio
import contextlib
from collections.abc import Iterator

#: The longest that reads give way, seconds, so that a settlement without a pace leaves them a share.
_WAIT_MAX_S = 0.02


class Precedence:
    """What has precedence is done in ``first``; whoever gives way awaits ``after`` before it begins."""

    def __init__(self) -> None:
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """While the body lasts, others wait."""
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def after(self) -> None:
        """Waits until nothing that has precedence is under way, for at most 20 ms."""
        if not self._idle.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_MAX_S):
                    await self._idle.wait()
