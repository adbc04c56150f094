"""The calls of a settlement worker to inventory and balance, answered purchase by purchase.

A call that fails as a whole gives every purchase in it an answer that is not known. One that fails with INTERNAL is
repeated by halves, so that a single purchase that the other side cannot digest does not take its neighbours with it.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from mesh import tracing
from mesh.call_metrics import ChannelMetrics
from mesh.channels import open_channel
from mesh.errors import DomainError, from_rpc_error, reason_name
from mesh.logs import get_logger, named
from mesh.transport import Transport
from purchase_svc.settlement_rules import Answer, Claimed
from purchase_svc.settlement_settings import SettlementSettings

log = get_logger(__name__)

#: Of a call: what a trace of it wants told.
Metadata = tracing.Metadata | None
Call = Callable[[Sequence[uuid.UUID], Metadata], Awaitable[Iterable[tuple[str, "Answer"]]]]

_INVENTORY, _BALANCE = (
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((inventory_pb, "InventoryService"), (balance_pb, "BalanceService"))
)

#: Answers by purchase id: one for every purchase that was asked about.
Answers = dict[uuid.UUID, Answer]


class SettlementServices:
    """Inventory and balance as the saga sees them. No method raises for a call that failed."""

    def __init__(self, inventory: grpc.aio.Channel, balance: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._inventory = InventoryServiceStub(inventory)
        self._balance = BalanceServiceStub(balance)
        self._timeout_s = timeout_s

    async def place_holds(self, purchases: Sequence[Claimed]) -> Answers:
        """Sets the amount of each purchase aside for its sale."""
        by_id = {purchase.purchase_id: purchase for purchase in purchases}

        async def call(ids: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = balance_pb.BatchPlaceHoldsRequest(holds=[_hold_of(by_id[each]) for each in ids])
            response = await self._balance.BatchPlaceHolds(request, timeout=self._timeout_s, metadata=metadata)
            return ((outcome.hold_id, Answer(outcome.reason)) for outcome in response.outcomes)

        return await _ask(f"{_BALANCE}/BatchPlaceHolds", call, list(by_id))

    async def capture_holds(self, ids: Sequence[uuid.UUID]) -> Answers:
        """Takes the money held."""

        async def call(some: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = balance_pb.BatchCaptureHoldsRequest(hold_ids=map(str, some))
            response = await self._balance.BatchCaptureHolds(request, timeout=self._timeout_s, metadata=metadata)
            return ((outcome.hold_id, Answer(outcome.reason)) for outcome in response.outcomes)

        return await _ask(f"{_BALANCE}/BatchCaptureHolds", call, ids)

    async def release_holds(self, ids: Sequence[uuid.UUID]) -> Answers:
        """Gives the money held back to its owner's use."""

        async def call(some: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = balance_pb.BatchReleaseHoldsRequest(hold_ids=map(str, some))
            response = await self._balance.BatchReleaseHolds(request, timeout=self._timeout_s, metadata=metadata)
            return ((outcome.hold_id, Answer(outcome.reason)) for outcome in response.outcomes)

        return await _ask(f"{_BALANCE}/BatchReleaseHolds", call, ids)

    async def confirm_reservations(self, ids: Sequence[uuid.UUID]) -> Answers:
        """Turns reserved units into shares with numbers."""

        async def call(some: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = inventory_pb.BatchConfirmReservationsRequest(reservation_ids=map(str, some))
            response = await self._inventory.BatchConfirmReservations(
                request, timeout=self._timeout_s, metadata=metadata
            )
            return (
                (outcome.reservation_id, Answer(outcome.reason, share_numbers=tuple(outcome.share_numbers)))
                for outcome in response.outcomes
            )

        return await _ask(f"{_INVENTORY}/BatchConfirmReservations", call, ids)

    async def release_reservations(self, ids: Sequence[uuid.UUID], *, revoke_sold: bool) -> Answers:
        """Gives units back; with ``revoke_sold`` shares too."""

        async def call(some: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = inventory_pb.BatchReleaseReservationsRequest(
                reservation_ids=map(str, some), revoke_sold=revoke_sold
            )
            response = await self._inventory.BatchReleaseReservations(
                request, timeout=self._timeout_s, metadata=metadata
            )
            return ((outcome.reservation_id, Answer(outcome.reason)) for outcome in response.outcomes)

        return await _ask(f"{_INVENTORY}/BatchReleaseReservations", call, ids)

    async def reverse_captures(self, ids: Sequence[uuid.UUID]) -> Answers:
        """Books captured money back to its owner."""

        async def call(some: Sequence[uuid.UUID], metadata: Metadata) -> Iterable[tuple[str, Answer]]:
            request = balance_pb.BatchReverseCapturesRequest(hold_ids=map(str, some))
            response = await self._balance.BatchReverseCaptures(request, timeout=self._timeout_s, metadata=metadata)
            return ((outcome.hold_id, Answer(outcome.reason)) for outcome in response.outcomes)

        return await _ask(f"{_BALANCE}/BatchReverseCaptures", call, ids)

    async def list_outcomes(self, page_size: int) -> Sequence[inventory_pb.WaitlistEntry]:
        """The oldest outcomes of the waitlist that are not acknowledged yet. Raises DomainError."""
        request = inventory_pb.ListWaitlistOutcomesRequest(page_size=page_size)
        try:
            return (await self._inventory.ListWaitlistOutcomes(request, timeout=self._timeout_s)).entries
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def acknowledge_outcomes(self, ids: Sequence[uuid.UUID]) -> None:
        """Notes that up to 1,000 outcomes have been taken in. Raises DomainError."""
        request = inventory_pb.BatchAcknowledgeWaitlistOutcomesRequest(reservation_ids=map(str, ids))
        try:
            await self._inventory.BatchAcknowledgeWaitlistOutcomes(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def list_waiting(self, sale_id: str, *, page_size: int, page_token: str) -> inventory_pb.ListWaitlistResponse:
        """A page of those who wait in a sale's line, in its order. Raises DomainError."""
        request = inventory_pb.ListWaitlistRequest(
            sale_id=sale_id,
            state=inventory_pb.WAITLIST_STATE_WAITING,
            page_size=page_size,
            page_token=page_token,
        )
        try:
            return await self._inventory.ListWaitlist(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def get_sale(self, sale_id: str) -> inventory_pb.Sale:
        """The sale. Raises DomainError."""
        request = inventory_pb.GetSaleRequest(sale_id=sale_id)
        try:
            return (await self._inventory.GetSale(request, timeout=self._timeout_s)).sale
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def list_sales(self, page_size: int, page_token: str) -> inventory_pb.ListSalesResponse:
        """A page of sales, newest first. Raises DomainError."""
        request = inventory_pb.ListSalesRequest(page_size=page_size, page_token=page_token)
        try:
            return await self._inventory.ListSales(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def list_reserved(
        self, sale_id: str, *, min_age_ms: int, page_size: int, page_token: str
    ) -> inventory_pb.ListReservationsResponse:
        """A page of a sale's reservations that are RESERVED since ``min_age_ms`` at least. Raises DomainError."""
        request = inventory_pb.ListReservationsRequest(
            sale_id=sale_id,
            state=inventory_pb.RESERVATION_STATE_RESERVED,
            min_age_ms=min_age_ms,
            page_size=page_size,
            page_token=page_token,
        )
        try:
            return await self._inventory.ListReservations(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def _hold_of(purchase: Claimed) -> balance_pb.PlaceHoldItem:
    return balance_pb.PlaceHoldItem(
        hold_id=str(purchase.purchase_id),
        user_id=purchase.user_id,
        amount=Money(amount_minor=purchase.amount_minor, currency_code=purchase.currency_code),
        beneficiary=str(purchase.sale_id),
    )


async def _ask(method: str, call: Call, ids: Sequence[uuid.UUID]) -> Answers:
    """Calls for ``ids``, which may be none, and gives each its answer."""
    if not ids:
        return {}
    try:
        with tracing.calling(method, ids) as traced:
            pairs = list(await call(ids, tracing.metadata_of(traced)))
    except grpc.aio.AioRpcError as error:
        failure = from_rpc_error(error)
    else:
        if [answered for answered, _ in pairs] == list(map(str, ids)):
            return dict(zip(ids, (answer for _, answer in pairs), strict=True))
        failure = DomainError(ErrorReason.ERROR_REASON_INTERNAL, "answers do not match what was asked")
    reason = reason_name(failure.reason)
    log.warning("a call failed", method=method, items=len(ids), purchase_ids=named(ids), reason=reason)
    if failure.reason == ErrorReason.ERROR_REASON_INTERNAL and len(ids) > 1:
        middle = len(ids) // 2
        return await _ask(method, call, ids[:middle]) | await _ask(method, call, ids[middle:])
    return dict.fromkeys(ids, Answer(failure.reason, known=False))


@asynccontextmanager
async def open_services(
    settings: SettlementSettings, transport: Transport, calls: ChannelMetrics | None = None
) -> AsyncIterator[SettlementServices]:
    """Inventory and balance, as settlement calls them."""
    async with AsyncExitStack() as stack:
        inventory = open_channel(settings.inventory_target, calls, transport=transport, service="inventory")
        stack.push_async_callback(inventory.close)
        balance = open_channel(settings.balance_target, calls, transport=transport, service="balance")
        stack.push_async_callback(balance.close)
        yield SettlementServices(inventory, balance, timeout_s=settings.call_timeout_ms / 1000)
