"""A wish whose time has run out while it waited costs nothing behind the Purchase Service."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from purchase_svc.buying import Buying
from purchase_svc.purchase import Purchase, Wish


class SoldOut:
    """Inventory and purchase book in one: nothing is left, and nobody has bought."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def BatchReserveShares(
        self, request: pb.BatchReserveSharesRequest, timeout: float, metadata: None
    ) -> pb.BatchReserveSharesResponse:
        self.asked += [item.user_id for item in request.items]
        return pb.BatchReserveSharesResponse(
            outcomes=[
                pb.ReserveOutcome(reservation_id=item.reservation_id, reason=ErrorReason.ERROR_REASON_SOLD_OUT)
                for item in request.items
            ]
        )

    async def get_many(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Purchase]:
        return {}


def _wish(user: str) -> Wish:
    return Wish(uuid.uuid4(), user, str(uuid.uuid4()), "r", 1)


async def test_only_those_who_still_wait_are_asked_for() -> None:
    other: Any = SoldOut()
    buying = Buying(other, other, lambda _: None, in_flight_max=1, waiting_max=10)
    now = asyncio.get_running_loop().time()
    outcomes = await buying._buy_gathered(
        [(_wish("late"), now - 0.1), (_wish("early"), now + 5), (_wish("later"), now - 1), (_wish("second"), now + 5)]
    )
    assert other.asked == ["early", "second"]
    overloaded, sold_out = ErrorReason.ERROR_REASON_OVERLOADED, ErrorReason.ERROR_REASON_SOLD_OUT
    assert [outcome.reason for outcome in outcomes] == [overloaded, sold_out, overloaded, sold_out]
    assert [each.reason for each in await buying._buy_gathered([(_wish("late"), now - 0.1)])] == [overloaded]
    assert other.asked == ["early", "second"]
