"""Work that one process at a time does over and over for all: settlement processes take turns by a lease.

A lease and not an advisory lock, because a round calls other services and must not keep a connection. It saves work and
guards nothing: what is done in rounds may be done twice at once.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable

from mesh.errors import DomainError
from mesh.logs import get_logger
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase_book import SQL_FOLDER

log = get_logger(__name__)

#: The longest that others wait when the holder of a lease has died, seconds; longer than a round lasts while nobody is
#: away. When it runs out in the middle of one, two are at work, which does no harm.
_LEASE_S = 3.0
#: Pauses after a round that found something, that found nothing, and that failed, seconds.
_PAUSE_NEWS_S, _PAUSE_S, _PAUSE_FAILED_S = 0.1, 0.25, 1.0


class Lease:
    """A lease of that name, taken by this object or by another. Both methods raise UNAVAILABLE."""

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)
        self._names = {"lease_name": name, "holder": uuid.uuid4()}

    async def take(self, ttl_s: float) -> bool:
        """Whether it is this object's for the next ``ttl_s`` seconds; taking it again renews it."""
        return bool(await run_statement(self._pool, self._queries.take_lease, {**self._names, "ttl_s": ttl_s}))

    async def give_back(self) -> None:
        """Lets another take it at once."""
        await run_statement(self._pool, self._queries.give_back_lease, self._names)


class LeasedRounds:
    """Calls ``work`` again and again while this process has the lease: every 100 ms while it returns that it found
    something to do, else every 250 ms. A DomainError leaves the rest to the next round, which comes in a second."""

    def __init__(self, name: str, lease: Lease, work: Callable[[], Awaitable[bool]]) -> None:
        self._name = name
        self._lease = lease
        self._work = work
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends ``run`` after the round under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Goes on until stopped."""
        while not self._stopping.is_set():
            pause_s = await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
        with contextlib.suppress(DomainError):
            await self._lease.give_back()

    async def _round(self) -> float:
        """One round, if it is our turn; the pause after it."""
        try:
            found = await self._lease.take(_LEASE_S) and await self._work()
        except DomainError as error:
            log.warning("a round is left to the next", work=self._name, reason=error.reason_name)
            return _PAUSE_FAILED_S
        return _PAUSE_NEWS_S if found else _PAUSE_S
