"""InventoryService on gRPC: checks what clients send, calls the domain, answers in the contract's terms."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc

from inventory_svc import conversion
from inventory_svc.eligibility import Eligibility
from inventory_svc.gate_moves import GateMoves
from inventory_svc.lifecycle import Lifecycle
from inventory_svc.lifecycle_servicer import LifecycleServicer
from inventory_svc.recalibration import Recalibrator
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.reserving import Reserving
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import StockGate
from inventory_svc.stock_watch import StockWatch
from inventory_svc.waitlist_book import WaitlistBook
from inventory_svc.waitlist_calls import WaitlistCalls
from mesh import page_token
from mesh.errors import DomainError, invalid_argument
from mesh.pages import Listed
from mesh.server import Registration

_SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"].full_name
_INVALID = ErrorReason.ERROR_REASON_INVALID_ARGUMENT


class InventoryServicer(LifecycleServicer, WaitlistCalls, inventory_service_pb2_grpc.InventoryServiceServicer):
    """Implements the contract; each RPC's effect and errors are described there."""

    def __init__(
        self,
        *,
        gate: StockGate,
        sales: SaleBook,
        book: ReservationBook,
        waitlist: WaitlistBook,
        reserving: Reserving,
        moves: GateMoves,
        recalibrator: Recalibrator,
        watch: StockWatch,
        lifecycle: Lifecycle,
        eligibility: Eligibility,
        rescheduled: Callable[[], None],
    ) -> None:
        LifecycleServicer.__init__(self, sales, lifecycle, eligibility, rescheduled)
        WaitlistCalls.__init__(self, sales=sales, book=book, waitlist=waitlist, moves=moves)
        self._gate = gate
        self._reserving = reserving
        self._recalibrator = recalibrator
        self._watch = watch

    def registration(self) -> Registration:
        """What ``mesh.server.GrpcServer`` registers."""
        return (
            _SERVICE,
            lambda server: inventory_service_pb2_grpc.add_InventoryServiceServicer_to_server(self, server),
        )

    async def GetStock(self, request: pb.GetStockRequest, context: Any) -> pb.GetStockResponse:
        """Reads the stock from the gate or from the book."""
        sale_id = conversion.sale_id_of(request.sale_id)
        if request.source not in pb.StockSource.values():
            raise invalid_argument(("source", f"{request.source} is no source"))
        if request.source == pb.StockSource.STOCK_SOURCE_BOOK:
            return pb.GetStockResponse(stock=conversion.stock_message(await self._book.stock(sale_id)))
        await self._sales.terms(sale_id)
        try:
            stock = await self._gate.read(sale_id)
        except DomainError as error:
            if error.reason == ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                self._recalibrator.report(sale_id)
            raise
        return pb.GetStockResponse(stock=conversion.stock_message(stock))

    async def WatchStock(self, request: pb.WatchStockRequest, context: Any) -> AsyncIterator[pb.WatchStockResponse]:
        """Streams the stock."""
        sale_id = conversion.sale_id_of(request.sale_id)
        await self._sales.terms(sale_id)
        async for update in self._watch.watch(sale_id, with_fingerprints=request.include_fingerprints):
            yield pb.WatchStockResponse(
                stock=None if update.stock is None else conversion.stock_message(update.stock),
                fingerprints_reset=update.reset,
                fingerprints_added=update.added,
                fingerprints_removed=update.removed,
            )

    async def BatchReserveShares(
        self, request: pb.BatchReserveSharesRequest, context: Any
    ) -> pb.BatchReserveSharesResponse:
        """Reserves units."""
        conversion.require_batch("items", len(request.items))
        wishes = [conversion.wish_of_item(item) for item in request.items]
        done = await self._reserving.reserve([wish for wish in wishes if wish is not None])
        reasons = iter(done.reasons)
        outcomes = [
            pb.ReserveOutcome(
                reservation_id=item.reservation_id,
                reason=_INVALID if wish is None else next(reasons),  # type: ignore[arg-type]
            )
            for item, wish in zip(request.items, wishes, strict=True)
        ]
        if done.positions:
            decided = [outcome for outcome, wish in zip(outcomes, wishes, strict=True) if wish is not None]
            for place, position in done.positions.items():
                decided[place].waiting, decided[place].waitlist_position = position > 0, position
        return pb.BatchReserveSharesResponse(
            outcomes=outcomes,
            sale_terms=[
                pb.SaleTerms(sale_id=sale_id, unit_price=conversion.price_message(terms))
                for sale_id, terms in done.terms.items()
            ],
        )

    async def BatchConfirmReservations(
        self, request: pb.BatchConfirmReservationsRequest, context: Any
    ) -> pb.BatchConfirmReservationsResponse:
        """Sells reservations."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        ids = conversion.canonical_ids(request.reservation_ids)
        known = [key for key in ids if key is not None]
        confirmed, moves = await self._book.confirm(known) if known else ({}, [])
        await self._moves.follow(moves)
        outcomes = []
        for text, key in zip(request.reservation_ids, ids, strict=True):
            if key is None:
                outcomes.append(pb.ConfirmOutcome(reservation_id=text, reason=_INVALID))
            else:
                found = confirmed[key]
                outcomes.append(
                    pb.ConfirmOutcome(
                        reservation_id=text,
                        reason=found.reason,  # type: ignore[arg-type]
                        share_numbers=found.share_numbers,
                    )
                )
        return pb.BatchConfirmReservationsResponse(outcomes=outcomes)

    async def BatchReleaseReservations(
        self, request: pb.BatchReleaseReservationsRequest, context: Any
    ) -> pb.BatchReleaseReservationsResponse:
        """Gives units back."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        ids = conversion.canonical_ids(request.reservation_ids)
        known = [key for key in ids if key is not None]
        reasons, moves = await self._book.release(known, revoke_sold=request.revoke_sold) if known else ({}, [])
        await self._moves.follow(moves)
        return pb.BatchReleaseReservationsResponse(
            outcomes=[
                pb.ReleaseOutcome(
                    reservation_id=text,
                    reason=_INVALID if key is None else reasons[key],  # type: ignore[arg-type]
                )
                for text, key in zip(request.reservation_ids, ids, strict=True)
            ]
        )

    async def ListReservations(self, request: pb.ListReservationsRequest, context: Any) -> pb.ListReservationsResponse:
        """Lists reservations of a sale."""
        sale_id = conversion.sale_id_of(request.sale_id)
        if request.min_age_ms < 0:
            raise invalid_argument(("min_age_ms", "must not be negative"))
        size = page_token.page_size(request.page_size)
        state = conversion.state_of_filter(request.state)
        listing = ["reservations", sale_id, state or ""]
        after = conversion.place_of(request.page_token, listing)
        await self._sales.terms(sale_id)
        found = await self._book.page(sale_id, state=state, min_age_ms=request.min_age_ms, size=size + 1, after=after)
        listed = Listed(
            found, size, lambda last: conversion.token_after(listing, last.create_time, last.reservation_id)
        )
        reservations, token = listed.page(conversion.reservation_message)
        return pb.ListReservationsResponse(reservations=reservations, next_page_token=token)

    async def RecalibrateSale(self, request: pb.RecalibrateSaleRequest, context: Any) -> pb.RecalibrateSaleResponse:
        """Rebuilds a sale's gate."""
        stock = await self._recalibrator.recalibrate(conversion.sale_id_of(request.sale_id))
        return pb.RecalibrateSaleResponse(stock=conversion.stock_message(stock))
