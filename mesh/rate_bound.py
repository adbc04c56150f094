"""Work let through at a bounded rate, in the order in which it comes."""

import asyncio


class RateBound:
    """Lets through at most ``per_s`` units of work a second, evenly; 0 bounds nothing."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._free_at = 0.0

    async def turn(self, units: int, deadline: float) -> bool:
        """Waits until it is this work's turn. False, at once, when that is after ``deadline`` on the loop's clock.

        A caller that is cancelled while it waits has used its turn.
        """
        if not self._per_s:
            return True
        now = asyncio.get_running_loop().time()
        starts_at = max(now, self._free_at)
        if starts_at > deadline:
            return False
        self._free_at = starts_at + units / self._per_s
        await asyncio.sleep(starts_at - now)
        return True
