"""The reaper: finds grants whose row never came, ends them in SQL, and only then gives their units back. Whoever waits
in line is never ended; a promotion that was half done is completed."""

import asyncio
from collections.abc import Callable

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import SCRIPT_ITEMS_MAX, StockGate
from inventory_svc.waitlist_book import WaitlistBook
from mesh import failpoints
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)


class Reaper:
    """Works through the overdue grants of every watched sale. ``changed`` is told a sale, its available units and how
    many wait."""

    def __init__(
        self,
        gate: StockGate,
        sales: SaleBook,
        book: ReservationBook,
        waitlist: WaitlistBook,
        *,
        grant_age_max_ms: int,
        changed: Callable[[str, int, int], None],
    ) -> None:
        self._gate = gate
        self._sales = sales
        self._book = book
        self._waitlist = waitlist
        self._grant_age_max_ms = grant_age_max_ms
        self._changed = changed

    async def run(self, *, period_ms: int) -> None:
        """Reaps periodically until cancelled."""
        while True:
            await asyncio.sleep(period_ms / 1000)
            try:
                for sale in await self._sales.watched():
                    await self._reap_sale(sale.sale_id)
            except DomainError as error:
                log.warning("grants cannot be checked", reason=error.reason_name)

    async def _reap_sale(self, sale_id: str) -> None:
        try:
            # Ends because each round takes what it found off the list of unproven grants.
            while await self.reap(sale_id) == SCRIPT_ITEMS_MAX:
                pass
        except DomainError as error:
            # Its gate is being rebuilt, which forgets such grants anyway; the other sales' turn comes all the same.
            if error.reason != ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                raise

    async def reap(self, sale_id: str) -> int:
        """Settles up to 250 overdue grants of a sale; how many. One with a row is proved, one without is ended by a
        RELEASED row and then given back; a crash between the two leaves it on the list. One that waits is proved if
        the gate has it waiting, and promoted in SQL if it has given it units."""
        overdue = await self._gate.overdue(sale_id, age_min_ms=self._grant_age_max_ms)
        epoch = overdue.epoch
        if not overdue.wishes:
            return 0
        reasons = await self._book.bury(sale_id, epoch, overdue.wishes)
        failpoints.hit("inventory.buried")
        proved = [key for key, reason in reasons.items() if not reason and key not in overdue.promoted]
        half_done = [key for key, reason in reasons.items() if not reason and key in overdue.promoted]
        promotion = await self._waitlist.promote(sale_id, epoch, half_done) if half_done else None
        # Whoever must let somebody else go first, of whom the promoter takes care, stays on the list.
        decided = promotion.decided if promotion else []
        ended = [key for key, reason in reasons.items() if reason]
        if ended:
            # Those that a move frees: it may pass the units on, so nobody else may give them back.
            followed = await self._book.releases_to_follow(sale_id, ended)
            decided += followed
            ended = [key for key in ended if key not in followed]
        if proved:
            await self._gate.prove_waiting(sale_id, epoch, proved)
        if decided:
            await self._gate.prove(sale_id, epoch, decided)
        if ended:
            self._changed(sale_id, *await self._gate.give_back(sale_id, epoch, ended))
            log.warning("grants without a row were given back", sale_id=sale_id, grants=len(ended))
        return len(proved) + len(decided) + len(ended)
