"""Receipts: everything that the three services know of one purchase."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import grpc
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb

from mesh.errors import DomainError, from_rpc_error
from mesh.logs import get_logger
from mesh.timed_batcher import TimedBatcher
from purchase_svc.history import History
from purchase_svc.history_book import HistoryBook

if TYPE_CHECKING:
    from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceAsyncStub
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

log = get_logger(__name__)

#: Purchases asked about in one call, and how many may wait to be asked about.
_BATCH_MAX, _QUEUE_MAX = 500, 2_000
#: Longest wait for the other services, seconds.
TIMEOUT_S = 3.0


class Receipt(NamedTuple):
    """A purchase with its reservation and its hold; None: there never was one."""

    history: History
    reservation: inventory_pb.Reservation | None
    hold: balance_pb.Hold | None


class Receipts:
    """Makes receipts; those asked for at the same time share their calls to the other services."""

    def __init__(
        self, book: HistoryBook, inventory: "InventoryServiceAsyncStub", balance: "BalanceServiceAsyncStub"
    ) -> None:
        self._book = book
        self._inventory = inventory
        self._balance = balance
        self._reservations: TimedBatcher[uuid.UUID, inventory_pb.Reservation | None] = TimedBatcher(
            self._get_reservations, batch_max=_BATCH_MAX, in_flight_max=2, queue_max=_QUEUE_MAX
        )
        self._holds: TimedBatcher[uuid.UUID, balance_pb.Hold | None] = TimedBatcher(
            self._get_holds, batch_max=_BATCH_MAX, in_flight_max=2, queue_max=_QUEUE_MAX
        )

    async def of(self, purchase_id: uuid.UUID, user_id: str, timeout_s: float) -> Receipt:
        """The receipt as of now. Raises PURCHASE_NOT_FOUND, OVERLOADED, DEADLINE_EXCEEDED when the other services have
        not told their parts within ``timeout_s`` seconds, and UNAVAILABLE when a part cannot be read: a receipt without
        its hold would say that nothing was charged."""
        history = await self._book.get(purchase_id, user_id)
        reservation, hold = await asyncio.gather(
            self._reservations.submit(purchase_id, timeout_s), self._holds.submit(purchase_id, timeout_s)
        )
        return Receipt(history, reservation, hold)

    async def _get_reservations(
        self, ids: Sequence[uuid.UUID], timeout_s: float
    ) -> list[inventory_pb.Reservation | None]:
        request = inventory_pb.BatchGetReservationsRequest(reservation_ids=_distinct(ids))
        try:
            response = await self._inventory.BatchGetReservations(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _away("the inventory service", error) from error
        found = {each.reservation_id: each for each in response.reservations}
        return [found.get(str(each)) for each in ids]

    async def _get_holds(self, ids: Sequence[uuid.UUID], timeout_s: float) -> list[balance_pb.Hold | None]:
        request = balance_pb.BatchGetHoldsRequest(hold_ids=_distinct(ids))
        try:
            response = await self._balance.BatchGetHolds(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _away("the balance service", error) from error
        found = {each.hold_id: each for each in response.holds}
        return [found.get(str(each)) for each in ids]


def _distinct(ids: Sequence[uuid.UUID]) -> list[str]:
    return list(map(str, dict.fromkeys(ids)))


def _away(who: str, error: grpc.aio.AioRpcError) -> DomainError:
    failure = from_rpc_error(error)
    log.warning("a part of a receipt could not be read", service=who, reason=failure.reason_name)
    return DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, f"{who} is away")
