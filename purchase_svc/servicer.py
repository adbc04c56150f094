"""The PurchaseService's calls: each reads its request, asks the domain, and writes the answer."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc

from mesh import failpoints, tracing
from mesh.channels import timeout_s
from mesh.errors import DomainError, from_rpc_error
from mesh.logs import get_logger
from mesh.server import Registration
from purchase_svc.buying import Buying
from purchase_svc.messages import (
    read_filter,
    read_purchase_id,
    read_sale_id,
    read_wish,
    read_wishes,
    refusal,
    write_outcome,
    write_page,
    write_purchase,
    write_summary,
)
from purchase_svc.operator_desk import OperatorDesk
from purchase_svc.operator_servicer import OperatorCalls
from purchase_svc.places import TIMEOUT_S as PLACE_TIMEOUT_S
from purchase_svc.places import Places
from purchase_svc.purchase import NO_PLACE
from purchase_svc.purchase_book import PurchaseBook
from purchase_svc.receipt_messages import write_receipt
from purchase_svc.receipts import TIMEOUT_S as RECEIPT_TIMEOUT_S
from purchase_svc.receipts import Receipts
from purchase_svc.refund_book import RefundBook
from purchase_svc.statements import Statements
from purchase_svc.summaries import Summaries
from purchase_svc.watching import Watching

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub

log = get_logger(__name__)

_RELEASE = f"{inventory_pb.DESCRIPTOR.services_by_name['InventoryService'].full_name}/BatchReleaseReservations"
#: Longest that a cancel waits for its units to be given back; the sweeper does it otherwise.
_RELEASE_TIMEOUT_S = 1.0


class PurchaseServicer(OperatorCalls):
    """Errors are raised as DomainError; the server's interceptor makes a status of them."""

    def __init__(
        self,
        book: PurchaseBook,
        buying: Buying,
        watching: Watching,
        summaries: Summaries,
        places: Places,
        refunds: RefundBook,
        receipts: Receipts,
        statements: Statements,
        desk: OperatorDesk,
        inventory: "InventoryServiceAsyncStub",
        *,
        buy_timeout_s: float,
        refund_window_s: int,
    ) -> None:
        super().__init__(statements, desk)
        self._book = book
        self._buying = buying
        self._watching = watching
        self._summaries = summaries
        self._places = places
        self._refunds = refunds
        self._receipts = receipts
        self._inventory = inventory
        self._buy_timeout_s = buy_timeout_s
        self._refund_window_s = refund_window_s

    @property
    def registration(self) -> Registration:
        """What a GrpcServer needs to serve this."""
        name = pb.DESCRIPTOR.services_by_name["PurchaseService"].full_name
        return name, lambda server: pb_grpc.add_PurchaseServiceServicer_to_server(self, server)

    async def CreatePurchase(self, request: pb.CreatePurchaseRequest, context: Any) -> pb.CreatePurchaseResponse:
        """See the contract."""
        wish = read_wish(request)
        (outcome,) = await self._buying.buy([wish], timeout_s(context, self._buy_timeout_s))
        if outcome.purchase is None:
            raise refusal(wish, outcome.reason)
        (place,) = await self._places.of_outcomes([outcome], timeout_s(context, PLACE_TIMEOUT_S))
        return pb.CreatePurchaseResponse(purchase=write_purchase(outcome.purchase, place))

    async def BatchCreatePurchases(
        self, request: pb.BatchCreatePurchasesRequest, context: Any
    ) -> pb.BatchCreatePurchasesResponse:
        """See the contract."""
        wishes = read_wishes(request)
        good = [wish for wish in wishes if wish is not None]
        outcomes = await self._buying.buy(good, timeout_s(context, self._buy_timeout_s)) if good else []
        places = await self._places.of_outcomes(outcomes, timeout_s(context, PLACE_TIMEOUT_S))
        answers = map(write_outcome, outcomes, places)
        return pb.BatchCreatePurchasesResponse(
            outcomes=[write_outcome(None) if wish is None else next(answers) for wish in wishes]
        )

    async def GetPurchase(self, request: pb.GetPurchaseRequest, context: Any) -> pb.GetPurchaseResponse:
        """See the contract."""
        purchase_id = read_purchase_id(request.purchase_id, request.user_id)
        purchase = await self._book.get(purchase_id, request.user_id)
        place = await self._places.of(purchase, timeout_s(context, PLACE_TIMEOUT_S))
        return pb.GetPurchaseResponse(purchase=write_purchase(purchase, place))

    async def ListPurchases(self, request: pb.ListPurchasesRequest, context: Any) -> pb.ListPurchasesResponse:
        """See the contract."""
        wanted, after, limit = read_filter(request)
        return write_page(await self._book.list_page(wanted, after, limit + 1), limit, wanted)

    async def WatchPurchase(
        self, request: pb.WatchPurchaseRequest, context: Any
    ) -> AsyncIterator[pb.WatchPurchaseResponse]:
        """See the contract."""
        purchase_id = read_purchase_id(request.purchase_id, request.user_id)
        first = True
        async with aclosing(self._watching.watch(purchase_id, request.user_id)) as purchases:
            async for purchase in purchases:
                place = await self._places.of(purchase, timeout_s(context, PLACE_TIMEOUT_S)) if first else NO_PLACE
                first = False
                yield pb.WatchPurchaseResponse(purchase=write_purchase(purchase, place))

    async def CancelPurchase(self, request: pb.CancelPurchaseRequest, context: Any) -> pb.CancelPurchaseResponse:
        """See the contract."""
        purchase_id = read_purchase_id(request.purchase_id, request.user_id)
        purchase = await self._book.cancel(purchase_id, request.user_id)
        failpoints.hit("purchase.cancelled")
        if purchase.cleanup_pending:
            await self._give_back(purchase_id, timeout_s(context, _RELEASE_TIMEOUT_S))
        return pb.CancelPurchaseResponse(purchase=write_purchase(purchase))

    async def RefundPurchase(self, request: pb.RefundPurchaseRequest, context: Any) -> pb.RefundPurchaseResponse:
        """See the contract."""
        purchase_id = read_purchase_id(request.purchase_id, request.user_id)
        purchase = await self._refunds.begin(purchase_id, request.user_id, window_s=self._refund_window_s)
        failpoints.hit("purchase.refunding")
        return pb.RefundPurchaseResponse(purchase=write_purchase(purchase))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        """See the contract."""
        purchase_id = read_purchase_id(request.purchase_id, request.user_id)
        receipt = await self._receipts.of(purchase_id, request.user_id, timeout_s(context, RECEIPT_TIMEOUT_S))
        place = await self._places.of(receipt.history.purchase, timeout_s(context, PLACE_TIMEOUT_S))
        return write_receipt(receipt, place)

    async def SummarizeSale(self, request: pb.SummarizeSaleRequest, context: Any) -> pb.SummarizeSaleResponse:
        """See the contract."""
        sale_id = read_sale_id(request.sale_id)
        summary, (queued, dead) = await asyncio.gather(self._summaries.of_sale(sale_id), self._summaries.depths())
        return write_summary(summary, queued, dead)

    async def _give_back(self, purchase_id: uuid.UUID, most_s: float) -> None:
        """Releases a cancelled purchase's units. The cancel stands whether or not this succeeds: what is left open is
        closed by the sweeper."""
        request = inventory_pb.BatchReleaseReservationsRequest(reservation_ids=[str(purchase_id)])
        try:
            with tracing.calling(_RELEASE, (purchase_id,)) as traced:
                response = await self._inventory.BatchReleaseReservations(
                    request, timeout=most_s, metadata=tracing.metadata_of(traced)
                )
            if response.outcomes[0].reason == ErrorReason.ERROR_REASON_UNSPECIFIED:
                await self._book.finish_cancel_cleanup(purchase_id)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error).reason_name
            log.warning("a cancelled purchase is left to the sweeper", purchase_id=str(purchase_id), reason=reason)
        except DomainError as error:
            reason = error.reason_name
            log.warning("a cancelled purchase is left to the sweeper", purchase_id=str(purchase_id), reason=reason)
