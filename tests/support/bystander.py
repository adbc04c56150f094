"""An honest client beside hostile ones: it goes on calling, and notes how long each call took."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

#: Between two calls, seconds.
_PAUSE_S = 0.02


class Bystander:
    """What it has met with. A failed call ends the test that it stands by."""

    def __init__(self) -> None:
        self.took_s: list[float] = []

    def assert_unaffected(self, *, within_s: float, calls: int = 1) -> None:
        """Requires that each call was answered in time, and that there were so many. One is always under way."""
        assert len(self.took_s) >= calls
        assert max(self.took_s) < within_s, f"a bystander waited {max(self.took_s):.2f} s"


@asynccontextmanager
async def bystander(call: Callable[[], Awaitable[object]]) -> AsyncIterator[Bystander]:
    """Calls from here to the end of the block, which raises what a call has raised."""
    met, done = Bystander(), asyncio.Event()

    async def go_on() -> None:
        while not done.is_set():
            began = time.perf_counter()
            await call()
            met.took_s.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        group.create_task(go_on())
        try:
            yield met
        finally:
            done.set()
