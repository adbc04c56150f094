"""Driving a sale of an inventory service through its life."""

import time
import uuid
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.errors import from_rpc_error
from tests.support.inventory_rig import OK, InventoryRig, item
from tests.support.waiting import eventually

CONFLICT = (grpc.StatusCode.FAILED_PRECONDITION, "SALE_STATE_CONFLICT", set[str]())


def in_s(seconds: float) -> Timestamp:
    """So many seconds from now. Tests and database share a clock, being on one machine."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() // 1000 * 1000 + round(seconds * 1e6) * 1000)
    return stamp


def state_name(state: int) -> str:
    """SOLD_OUT rather than SALE_STATE_SOLD_OUT."""
    return pb.SaleState.Name(state).removeprefix("SALE_STATE_")  # type: ignore[arg-type]


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, set[str]]:
    """Status code, reason and wrong fields of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return caught.value.code(), error.reason_name, {field for field, _ in error.violations}


async def ask(rig: InventoryRig, verb: str, sale_id: str, **given: Any) -> pb.Sale:
    """Calls ScheduleSale, OpenSale, PauseSale, CloseSale or RaiseSaleTotal."""
    name = "RaiseSaleTotal" if verb == "Raise" else f"{verb}Sale"
    response = await getattr(rig.inventory, name)(getattr(pb, f"{name}Request")(sale_id=sale_id, **given), timeout=15)
    sale: pb.Sale = response.sale
    return sale


async def sale_of(rig: InventoryRig, sale_id: str) -> pb.Sale:
    """The sale as it is now."""
    sale: pb.Sale = (await rig.inventory.GetSale(pb.GetSaleRequest(sale_id=sale_id), timeout=10)).sale
    return sale


async def until_state(rig: InventoryRig, sale_id: str, state: str, within_s: float = 10.0) -> pb.Sale:
    """Waits until the sale is in a state."""

    async def there() -> bool:
        return state_name((await sale_of(rig, sale_id)).state) == state

    await eventually(there, within_s=within_s)
    return await sale_of(rig, sale_id)


async def changes_of(rig: InventoryRig, sale_id: str) -> list[tuple[str, str, str, int]]:
    """Who changed what: actor, state before, state after, total after; oldest first."""
    response = await rig.inventory.ListSaleChanges(pb.ListSaleChangesRequest(sale_id=sale_id), timeout=10)
    times = [change.change_time.ToNanoseconds() for change in response.changes]
    assert times == sorted(times)
    return [
        (change.actor, state_name(change.from_state), state_name(change.to_state), change.total)
        for change in response.changes
    ]


async def sell(rig: InventoryRig, sale_id: str, quantity: int = 1, user: str = "") -> str:
    """Sells units to somebody; the reservation's id."""
    wish = item(sale_id, user or uuid.uuid4().hex, quantity=quantity)
    assert await rig.reserve_until_decided([wish]) == [OK]
    ((reason, numbers),) = await rig.confirm([wish.reservation_id])
    assert (reason, len(numbers)) == (OK, quantity)
    return str(wish.reservation_id)


async def sale_in_state(rig: InventoryRig, state: str) -> str:
    """A fresh sale of one unit that has come into a state; its id."""
    given: dict[str, Any] = {"open_time": in_s(3600)} if state == "SCHEDULED" else {}
    sale_id = str((await rig.create_sale(1, actor="maker", **given)).sale_id)
    if state in ("OPEN", "PAUSED", "SOLD_OUT"):
        await ask(rig, "Open", sale_id, actor="opener")
    if state == "PAUSED":
        await ask(rig, "Pause", sale_id, actor="pauser")
    if state == "SOLD_OUT":
        await sell(rig, sale_id)
    if state == "CLOSED":
        await ask(rig, "Close", sale_id, actor="closer")
    await until_state(rig, sale_id, state)
    return sale_id
