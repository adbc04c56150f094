"""The calls about lines and single reservations; a part of the servicer."""

from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc import conversion, waitlist_messages
from inventory_svc.gate_moves import GateMoves
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale_book import SaleBook
from inventory_svc.waitlist_book import WaitlistBook
from mesh import page_token
from mesh.pages import Listed

_INVALID = ErrorReason.ERROR_REASON_INVALID_ARGUMENT
_OUTCOMES_MAX = 1_000


class WaitlistCalls:
    """Implements that part of the contract; each RPC's effect and errors are described there."""

    def __init__(self, *, sales: SaleBook, book: ReservationBook, waitlist: WaitlistBook, moves: GateMoves) -> None:
        self._sales = sales
        self._book = book
        self._waitlist = waitlist
        self._moves = moves

    async def BatchGetReservations(
        self, request: pb.BatchGetReservationsRequest, context: Any
    ) -> pb.BatchGetReservationsResponse:
        """Reads reservations by id."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        known = [key for key in conversion.canonical_ids(request.reservation_ids) if key is not None]
        found = await self._book.by_id(known) if known else {}
        return pb.BatchGetReservationsResponse(
            reservations=[conversion.reservation_message(found[key]) for key in known if key in found]
        )

    async def BatchGetWaitlistPositions(
        self, request: pb.BatchGetWaitlistPositionsRequest, context: Any
    ) -> pb.BatchGetWaitlistPositionsResponse:
        """Tells places in line."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        ids = conversion.canonical_ids(request.reservation_ids)
        known = [key for key in ids if key is not None]
        places = await self._waitlist.places(known) if known else {}
        return pb.BatchGetWaitlistPositionsResponse(
            positions=[
                waitlist_messages.position_message(text, places.get(key) if key is not None else None)
                for text, key in zip(request.reservation_ids, ids, strict=True)
            ]
        )

    async def BatchLeaveWaitlist(
        self, request: pb.BatchLeaveWaitlistRequest, context: Any
    ) -> pb.BatchLeaveWaitlistResponse:
        """Takes requests out of the line."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        ids = conversion.canonical_ids(request.reservation_ids)
        known = [key for key in ids if key is not None]
        reasons, moves = await self._waitlist.leave(known) if known else ({}, [])
        await self._moves.follow(moves)
        return pb.BatchLeaveWaitlistResponse(
            outcomes=[
                pb.LeaveOutcome(
                    reservation_id=text,
                    reason=_INVALID if key is None else reasons[key],  # type: ignore[arg-type]
                )
                for text, key in zip(request.reservation_ids, ids, strict=True)
            ]
        )

    async def ListWaitlist(self, request: pb.ListWaitlistRequest, context: Any) -> pb.ListWaitlistResponse:
        """Lists a line."""
        sale_id = conversion.sale_id_of(request.sale_id)
        size = page_token.page_size(request.page_size)
        state = waitlist_messages.state_of_filter(request.state)
        listing = ["waitlist", sale_id, state or ""]
        after_ticket = waitlist_messages.ticket_of(request.page_token, listing)
        await self._sales.terms(sale_id)
        found = await self._waitlist.page(sale_id, state=state, size=size + 1, after_ticket=after_ticket)
        listed = Listed(found, size, lambda last: page_token.encode(listing, [str(last.ticket)]))
        entries, token = listed.page(waitlist_messages.entry_message)
        return pb.ListWaitlistResponse(entries=entries, next_page_token=token)

    async def ListWaitlistOutcomes(
        self, request: pb.ListWaitlistOutcomesRequest, context: Any
    ) -> pb.ListWaitlistOutcomesResponse:
        """Lists outcomes that have not been acknowledged."""
        size = page_token.page_size(request.page_size, default=_OUTCOMES_MAX, most=_OUTCOMES_MAX)
        entries = await self._waitlist.untold(size)
        return pb.ListWaitlistOutcomesResponse(entries=[waitlist_messages.entry_message(entry) for entry in entries])

    async def BatchAcknowledgeWaitlistOutcomes(
        self, request: pb.BatchAcknowledgeWaitlistOutcomesRequest, context: Any
    ) -> pb.BatchAcknowledgeWaitlistOutcomesResponse:
        """Notes that outcomes have been taken in."""
        conversion.require_batch("reservation_ids", len(request.reservation_ids))
        known = [key for key in conversion.canonical_ids(request.reservation_ids) if key is not None]
        if known:
            await self._waitlist.acknowledge(known)
        return pb.BatchAcknowledgeWaitlistOutcomesResponse()
