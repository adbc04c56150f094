"""The timekeeper: lets sales open and close at their times, and be sold out and open again as their stock goes."""

import asyncio
import contextlib

from inventory_svc.lifecycle import Lifecycle
from inventory_svc.sale_book import SaleBook
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)


class Timekeeper:
    """Makes the changes that are due by the database's clock. Every process has one: a change that several see due is
    made by whichever locks the sale first."""

    def __init__(self, sales: SaleBook, lifecycle: Lifecycle) -> None:
        self._sales = sales
        self._lifecycle = lifecycle
        self._wake = asyncio.Event()

    def soon(self) -> None:
        """Looks now rather than at the next round: a sale has been given other times."""
        self._wake.set()

    async def run(self, *, period_ms: int) -> None:
        """Looks periodically, and at the next opening or closing time that is known, until cancelled."""
        while True:
            self._wake.clear()
            wait_s = period_ms / 1000
            began_at = asyncio.get_running_loop().time()
            try:
                # Read before what is due: a time that passes in between is then found due.
                next_s = await self._sales.next_appointment_s()
                await self._round()
                if next_s is not None:
                    wait_s = min(wait_s, next_s - (asyncio.get_running_loop().time() - began_at))
            except DomainError as error:
                log.warning("sales cannot be looked at", reason=error.reason_name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._wake.wait()

    async def _round(self) -> None:
        for due in await self._sales.due():
            try:
                await self._lifecycle.advance(due)
            except DomainError as error:
                # The other sales' turn comes all the same.
                log.warning("a sale cannot change by itself", sale_id=due.sale_id, reason=error.reason_name)
