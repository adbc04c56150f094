"""Places in line: where a purchase that waits stands now, and when its turn may come."""

import asyncio
import math
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb

from mesh.errors import DomainError, from_rpc_error
from mesh.logs import get_logger
from mesh.timed_batcher import TimedBatcher
from purchase_svc.purchase import NO_PLACE, Outcome, Place, Purchase, PurchaseState

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

log = get_logger(__name__)

#: Places asked for in one call, and how many may wait to be asked for; beyond that a place is not told.
_BATCH_MAX, _QUEUE_MAX = 1_000, 10_000
#: Longest wait for a place, seconds: whoever asks wants to know about a purchase first of all.
TIMEOUT_S = 1.0


class Places:
    """Asks the Inventory Service for places, many callers' in one call. Nothing here raises: what cannot be told now is
    no place."""

    def __init__(self, inventory: "InventoryServiceAsyncStub", *, rate_per_s: float) -> None:
        self._inventory = inventory
        self._rate_per_s = rate_per_s
        self._batcher: TimedBatcher[uuid.UUID, int] = TimedBatcher(
            self._ask, batch_max=_BATCH_MAX, in_flight_max=1, queue_max=_QUEUE_MAX
        )

    def at(self, position: int) -> Place:
        """The place, with the estimate: everybody before it is served at ``rate_per_s``."""
        return Place(position, math.ceil(position / self._rate_per_s)) if position else NO_PLACE

    async def of(self, purchase: Purchase, timeout_s: float) -> Place:
        """Where the purchase stands now, as far as that is told within ``timeout_s`` seconds."""
        if purchase.state is not PurchaseState.WAITLISTED:
            return NO_PLACE
        try:
            return self.at(await self._batcher.submit(purchase.purchase_id, timeout_s))
        except DomainError:
            return NO_PLACE

    async def of_outcomes(self, outcomes: Sequence[Outcome], timeout_s: float) -> list[Place]:
        """The places of purchases just bought, as they were told; asked for where they were not."""

        async def place(outcome: Outcome) -> Place:
            if outcome.purchase is None:
                return NO_PLACE
            return self.at(outcome.place) if outcome.place else await self.of(outcome.purchase, timeout_s)

        if not any(each.purchase and each.purchase.state is PurchaseState.WAITLISTED for each in outcomes):
            return [NO_PLACE] * len(outcomes)
        return list(await asyncio.gather(*map(place, outcomes)))

    async def _ask(self, ids: Sequence[uuid.UUID], timeout_s: float) -> list[int]:
        request = inventory_pb.BatchGetWaitlistPositionsRequest(reservation_ids=map(str, ids))
        try:
            response = await self._inventory.BatchGetWaitlistPositions(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            log.warning("places in line could not be read", purchases=len(ids), reason=failure.reason_name)
            raise failure from error
        positions = {each.reservation_id: each.position for each in response.positions}
        return [positions.get(str(each), 0) for each in ids]
