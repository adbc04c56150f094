"""One pace for all settlement workers: a token bucket in SQL, on the database's clock.

The bucket is kept as the generic cell rate algorithm does (GCRA, ITU-T I.371): one row with the time at which it would
be full again. A taker moves that time forward by its tokens and is told when they are due, so grants queue in the order
in which they were asked for and nobody polls.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.logs import get_logger
from mesh.postgres import Pool, Queries, connection

log = get_logger(__name__)

_SQL_FOLDER = Path(__file__).parent / "sql"

#: Largest batch whatever the rate, purchases.
_BATCH_MAX = 250
#: A batch is what is due in this time, so that sending is even: seconds.
_BATCH_S = 0.1
_BATCH_MIN = 10
#: A grant older than this when it is used, seconds, is void: used late it would be sent together with later ones.
_GRANT_AGE_MAX_S = 0.1
#: Void grants in a row before the purchases are put back, so that a stalled process cannot take all the tokens.
_VOID_GRANTS_MAX = 5
#: The least that counts as a slow call, seconds.
_SLOW_CALL_MIN_S = 0.2
#: The bucket is never further ahead of the clock than this, seconds, unless the rate itself asks for it; more is a
#: clock that was set back, after which settlement would stand still.
_AHEAD_MIN_S = 60.0
#: Workers for which grants may wait in line at once.
_WORKERS_MAX = 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast purchases may be sent: in any second at most ``rate_per_s + burst``, over all workers.

    Half of the burst is the bucket's size. The other half is for calls under way: granted in one second, they may
    arrive in the next.
    """

    rate_per_s: int
    burst: int

    @property
    def capacity(self) -> int:
        """Tokens that a full bucket holds."""
        return max(1, self.burst // 2)

    @property
    def batch_max(self) -> int:
        """Most purchases in one batch: what is due in 100 ms, 10 to 250, and never more than the bucket holds."""
        return min(_BATCH_MAX, self.capacity, max(_BATCH_MIN, int(self.rate_per_s * _BATCH_S)))

    @property
    def calls_max(self) -> int:
        """Batches that one worker may have under way at once: as many as the other half of the burst holds."""
        return max(1, (self.burst - self.capacity) // self.batch_max)

    @property
    def slow_call_s(self) -> float:
        """Calls that take longer, seconds, count twice: they may have piled up and been executed together.

        At this length a worker's calls, one after the other, use no more than the rate even when each counts twice.
        """
        return max(_SLOW_CALL_MIN_S, 2 * self.batch_max / self.rate_per_s)


class TokenBucket:
    """Takes tokens from the bucket that all workers share. Without the database there are no tokens."""

    def __init__(self, pool: Pool, pace: Pace) -> None:
        self.pace = pace
        self._pool = pool
        self._queries = Queries(_SQL_FOLDER)
        # While one batch is sent the next one already waits for its tokens, but only one: tokens do not keep.
        self._taking = asyncio.Lock()
        self._sending = asyncio.Semaphore(pace.calls_max)

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[None]:
        """Waits until ``tokens`` purchases may be sent, which the body does at once.

        ``tokens`` is 1 to ``pace.batch_max``. Raises UNAVAILABLE when the database is away or this process is too slow
        to use what it is granted; nothing may be sent then.
        """
        assert 1 <= tokens <= self.pace.batch_max
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            async with self._taking:
                due = await self._take(tokens)
                await stack.enter_async_context(self._sending)
                for _ in range(_VOID_GRANTS_MAX):
                    if loop.time() - due <= _GRANT_AGE_MAX_S:
                        break
                    due = await self._take(tokens)
                else:
                    raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "too slow to use the tokens granted")
            begun = loop.time()
            try:
                yield
            finally:
                if loop.time() - begun > self.pace.slow_call_s:
                    await self._charge(tokens)

    async def _take(self, tokens: int) -> float:
        """Waits for tokens; when they were due, at the earliest, on the loop's clock."""
        asked = asyncio.get_running_loop().time()
        wait_s = await self._grant(tokens)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        # The grant was made after we asked for it.
        return asked + max(0.0, wait_s)

    async def _charge(self, tokens: int) -> None:
        try:
            await self._grant(tokens)
        except DomainError as error:
            # Whoever sends next needs the same database, and will find it away.
            log.warning("a slow call was not charged", reason=error.reason_name)

    async def _grant(self, tokens: int) -> float:
        """Takes tokens; the time until they are due, seconds, negative when they already are."""
        pace = self.pace
        parameters = {
            "tokens": tokens,
            "capacity": pace.capacity,
            "rate_per_s": float(pace.rate_per_s),
            "ahead_max_s": max(_AHEAD_MIN_S, _WORKERS_MAX * pace.batch_max / pace.rate_per_s),
        }
        async with connection(self._pool) as conn:
            row = await (await conn.execute(self._queries.take_tokens, parameters)).fetchone()
        assert row is not None
        return float(row[0])
