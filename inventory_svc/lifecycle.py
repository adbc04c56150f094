"""Changes of a sale and of its gate together: whatever SQL says of a sale, its gate follows."""

from inventory_svc.recalibration import Recalibrator
from inventory_svc.sale import Sale, SaleState, Times, changes_state, concerns_gate, raises_total
from inventory_svc.sale_book import DueSale, SaleBook
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)


class Lifecycle:
    """Changes sales. Every change is committed with who made it and when; the gate then comes back into service at
    once or, when Redis is away, by the recalibration watch."""

    def __init__(self, sales: SaleBook, recalibrator: Recalibrator) -> None:
        self._sales = sales
        self._recalibrator = recalibrator

    async def change(self, sale_id: str, wanted: SaleState, actor: str) -> Sale:
        """Moves a sale to a state somebody asked for. Raises SALE_NOT_FOUND and SALE_STATE_CONFLICT."""
        # Looked at first without a lock, so that a request that changes nothing does not stop the gate.
        before = await self._sales.get(sale_id)
        if not changes_state(before.state, wanted):
            return before
        # Stopped first: under a storm of reservations the change would wait long for its turn at the fence.
        await self._recalibrator.stop_gate(sale_id)
        try:
            sale, _ = await self._sales.change_state(sale_id, wanted, actor)
        finally:
            await self.bring_into_service(sale_id)
        return sale

    async def schedule(self, sale_id: str, times: Times, actor: str) -> Sale:
        """Sets when a sale opens and closes by itself; what is due by then is done at once. Raises SALE_NOT_FOUND and
        SALE_STATE_CONFLICT."""
        await self._sales.schedule(sale_id, times, actor)
        for due in await self._sales.due():
            if due.sale_id == sale_id:
                await self.advance(due)
        # Read anew: another process may have made the change that was due.
        return await self._sales.get(sale_id)

    async def raise_total(self, sale_id: str, total: int, actor: str) -> Sale:
        """Raises a sale's total and puts the new units on sale. Raises SALE_NOT_FOUND, SALE_STATE_CONFLICT and
        INVALID_ARGUMENT."""
        before = await self._sales.get(sale_id)
        if not raises_total(before, total):
            return before
        await self._recalibrator.stop_gate(sale_id)
        try:
            await self._sales.raise_total(sale_id, total, actor)
        finally:
            await self.bring_into_service(sale_id)
        # One that was sold out no longer is.
        return await self.advance(DueSale(sale_id, ends=False))

    async def advance(self, due: DueSale) -> Sale:
        """Makes the change that is due by itself, if any; the sale then. Raises SALE_NOT_FOUND."""
        if due.ends:
            await self._recalibrator.stop_gate(due.sale_id)
        gate_follows = False
        try:
            before, after = await self._sales.advance(due.sale_id)
            gate_follows = concerns_gate(before, after)
        finally:
            if gate_follows:
                await self.bring_into_service(due.sale_id)
            elif due.ends:
                # Another process made the change meanwhile, or it could not be made: the watch looks whether the gate
                # that was stopped here is the one in service.
                self._recalibrator.report(due.sale_id)
        if after is not before:
            log.info("a sale changed by itself", sale_id=due.sale_id, state=after.state.value, actor=after.state_actor)
        return after

    async def bring_into_service(self, sale_id: str) -> None:
        """Lets the gate follow what SQL says. When that does not work now, it stays shut and the watch goes on."""
        try:
            await self._recalibrator.recalibrate(sale_id)
        except DomainError as error:
            log.warning("the gate follows later", sale_id=sale_id, reason=error.reason_name)
            self._recalibrator.report(sale_id)
