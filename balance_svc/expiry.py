"""The expirer: gives back the money of holds that nobody has captured or released in time."""

import asyncio

from balance_svc.hold_book import HoldBook
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)


async def expire_overdue(book: HoldBook, batch_max: int) -> int:
    """Ends every hold that is overdue now, ``batch_max`` to a transaction; returns how many were found."""
    total = 0
    while True:
        found = await book.expire_overdue(batch_max)
        total += found
        if found < batch_max:
            return total


async def keep_expiring(book: HoldBook, *, interval_s: float, batch_max: int) -> None:
    """Looks for overdue holds every ``interval_s`` seconds until cancelled; while the database is away it waits."""
    while True:
        try:
            expired = await expire_overdue(book, batch_max)
            if expired:
                log.info("holds expired", holds=expired)
        except DomainError as error:
            log.warning("cannot look for overdue holds", reason=error.reason_name)
        await asyncio.sleep(interval_s)
