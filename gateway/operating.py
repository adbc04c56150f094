"""Calls on behalf of operators. Few at once, by a bound of their own: a crowd of buyers takes no room from them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.json_forms import (
    any_purchase_json,
    dead_letter_json,
    operated_sale_json,
    replayed_json,
    sale_change_json,
    statement_json,
)
from mesh.errors import DomainError, from_rpc_error

if TYPE_CHECKING:
    from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceAsyncStub
    from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceAsyncStub

T = TypeVar("T")

#: Largest total of a sale, most items of a page, dead letters of one call, and parked purchases of one call: as many of
#: their ids as a body holds.
TOTAL_MAX, PAGE_MAX, REPLAY_MAX, PARKED_MAX = 10_000_000, 1000, 100, 100
#: Most users who are made eligible by one call, and the largest body that names them, bytes: as long as ids mostly are.
ELIGIBLE_MAX, ELIGIBLE_BYTES_MAX = 1000, 64 * 1024
#: Calls at once, and how long one may take, s: closing a sale or raising its total counts its stock anew.
_CALLS_MAX, _TIMEOUT_S = 16, 10.0


class Operating:
    """Every method raises the DomainError that the service answered, or OVERLOADED, UNAVAILABLE, DEADLINE_EXCEEDED."""

    def __init__(self, purchases: "PurchaseServiceAsyncStub", inventories: "InventoryServiceAsyncStub") -> None:
        self._purchases, self._inventories = purchases, inventories
        self.calls = 0

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.calls >= _CALLS_MAX:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, "too many operators' calls at once")
        self.calls += 1
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            self.calls -= 1

    async def changed(self, verb: str, sale_id: str, actor: str) -> dict[str, Any]:
        """The sale after ``actor`` has opened, paused or closed it; ``verb`` is "open", "pause" or "close"."""
        match verb:
            case "open":
                opening = inventory.OpenSaleRequest(sale_id=sale_id, actor=actor)
                sale = (await self._call(lambda: self._inventories.OpenSale(opening, timeout=_TIMEOUT_S))).sale
            case "pause":
                pausing = inventory.PauseSaleRequest(sale_id=sale_id, actor=actor)
                sale = (await self._call(lambda: self._inventories.PauseSale(pausing, timeout=_TIMEOUT_S))).sale
            case _:
                assert verb == "close", verb
                closing = inventory.CloseSaleRequest(sale_id=sale_id, actor=actor)
                sale = (await self._call(lambda: self._inventories.CloseSale(closing, timeout=_TIMEOUT_S))).sale
        return operated_sale_json(sale)

    async def raised(self, sale_id: str, total: int, actor: str) -> dict[str, Any]:
        """The sale after ``actor`` has raised its total."""
        request = inventory.RaiseSaleTotalRequest(sale_id=sale_id, total=total, actor=actor)
        answer = await self._call(lambda: self._inventories.RaiseSaleTotal(request, timeout=_TIMEOUT_S))
        return operated_sale_json(answer.sale)

    async def scheduled(
        self, sale_id: str, open_time: Timestamp | None, close_time: Timestamp | None, actor: str
    ) -> dict[str, Any]:
        """The sale after ``actor`` has set when it opens and closes by itself; None: not by itself."""
        request = inventory.ScheduleSaleRequest(
            sale_id=sale_id, open_time=open_time, close_time=close_time, actor=actor
        )
        answer = await self._call(lambda: self._inventories.ScheduleSale(request, timeout=_TIMEOUT_S))
        return operated_sale_json(answer.sale)

    async def made_eligible(self, sale_id: str, user_ids: Sequence[str]) -> dict[str, Any]:
        """How many of these users were not on the sale's list before, and how many are on it now."""
        request = inventory.BatchAddEligibleUsersRequest(sale_id=sale_id, user_ids=user_ids)
        answer = await self._call(lambda: self._inventories.BatchAddEligibleUsers(request, timeout=_TIMEOUT_S))
        return {"added": answer.added, "eligible": answer.eligible}

    async def changes(self, sale_id: str, page_size: int, page_token: str) -> dict[str, Any]:
        """A page of what was done with a sale, by whom and when, oldest first."""
        request = inventory.ListSaleChangesRequest(sale_id=sale_id, page_size=page_size, page_token=page_token)
        answer = await self._call(lambda: self._inventories.ListSaleChanges(request, timeout=_TIMEOUT_S))
        return {
            "changes": [sale_change_json(each) for each in answer.changes],
            "next_page_token": answer.next_page_token,
        }

    async def statement(self, sale_id: str, page_size: int, page_token: str) -> dict[str, Any]:
        """What a sale has come to, with a page of those who won nothing."""
        request = purchase.GetSaleStatementRequest(sale_id=sale_id, page_size=page_size, page_token=page_token)
        answer = await self._call(lambda: self._purchases.GetSaleStatement(request, timeout=_TIMEOUT_S))
        return statement_json(answer)

    async def dead_letters(self, most: int) -> dict[str, Any]:
        """The oldest messages that no worker can settle, and how many there are in all."""
        request = purchase.ListDeadLettersRequest(page_size=most)
        answer = await self._call(lambda: self._purchases.ListDeadLetters(request, timeout=_TIMEOUT_S))
        return {"count": answer.count, "letters": [dead_letter_json(each) for each in answer.letters]}

    async def replayed_dead_letters(self, most: int) -> dict[str, Any]:
        """What became of the oldest ``most`` after they were sent to their partitions again."""
        request = purchase.ReplayDeadLettersRequest(letters_max=most)
        answer = await self._call(lambda: self._purchases.ReplayDeadLetters(request, timeout=_TIMEOUT_S))
        return {"purchases": answer.purchases, "letters_left": answer.letters_left, "why": list(answer.why)}

    async def parked(self, page_size: int, page_token: str) -> dict[str, Any]:
        """A page of the purchases whose attempts are exhausted, of any sale."""
        request = purchase.ListPurchasesRequest(
            state=purchase.PURCHASE_STATE_PARKED, page_size=page_size, page_token=page_token
        )
        answer = await self._call(lambda: self._purchases.ListPurchases(request, timeout=_TIMEOUT_S))
        return {
            "purchases": [any_purchase_json(each) for each in answer.purchases],
            "next_page_token": answer.next_page_token,
        }

    async def replayed_parked(self, purchase_ids: Sequence[str]) -> dict[str, Any]:
        """What became of each after the workers were let try it again."""
        request = purchase.BatchReplayParkedPurchasesRequest(purchase_ids=purchase_ids)
        answer = await self._call(lambda: self._purchases.BatchReplayParkedPurchases(request, timeout=_TIMEOUT_S))
        return {"outcomes": [replayed_json(each) for each in answer.outcomes]}
