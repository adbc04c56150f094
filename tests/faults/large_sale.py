"""Redis comes back empty while a sale has 100,000 reservations."""

import time
import uuid
from collections.abc import Iterator

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import call
from bench.seeding import open_sale
from mesh.identity import purchase_id
from tests.faults.books import Books
from tests.faults.faults import Fault
from tests.faults.run import PRICE_MINOR, FaultError, Run
from tests.faults.server_faults import EXACT_S_MAX, replace_redis

_RESERVATIONS, _LEFT = 100_000, 500
_PER_CALL = 1_000
_S_MAX = 30.0


async def _sell(run: Run, sale_id: str) -> None:
    """Reserves and confirms for 100,000 users. Confirmed, as no sweeper gives up what is sold."""
    for first in range(0, _RESERVATIONS, _PER_CALL):
        users = [f"large-{number}" for number in range(first, first + _PER_CALL)]
        items = [
            inventory.ReserveItem(
                reservation_id=str(purchase_id(user, sale_id, "large")),
                sale_id=sale_id,
                user_id=user,
                request_id="large",
                quantity=1,
            )
            for user in users
        ]
        ids = [item.reservation_id for item in items]
        reserved = await call(
            run.clients.inventory.BatchReserveShares, inventory.BatchReserveSharesRequest(items=items)
        )
        confirm = inventory.BatchConfirmReservationsRequest(reservation_ids=ids)
        confirmed = await call(run.clients.inventory.BatchConfirmReservations, confirm)
        refused = {each.reason for answer in (reserved, confirmed) for each in answer.outcomes} - {
            ErrorReason.ERROR_REASON_UNSPECIFIED
        }
        if refused:
            raise FaultError(f"reservations of the large sale were refused: {refused}")


async def _wiped(run: Run) -> None:
    """The gate of the large sale is exact again soon after an empty Redis accepts connections."""
    sale_id = await open_sale(run.clients, f"Large {uuid.uuid4().hex[:8]}", _RESERVATIONS + _LEFT, PRICE_MINOR)
    await _sell(run, sale_id)
    await run.world.off(replace_redis, run.world)
    since = time.monotonic()
    exact = {"serving": "1", "available": str(_LEFT), "reserved": "0", "sold": str(_RESERVATIONS)}
    async with Books(run.world.environment, sale_id) as books:
        while not exact.items() <= (gate := await books.gate()).items():
            if time.monotonic() - since > _S_MAX:
                raise FaultError(f"the gate is {gate} after {_S_MAX:.0f} s")
        took_s = time.monotonic() - since
        records = len(await books.records_in_gate())
    run.effects["reservations at the wipe"] = records
    run.recovery_s["100,000 reservations after redis"] = took_s
    run.require_within(took_s, EXACT_S_MAX, "the gate of 100,000 reservations was exact")
    run.verdict.require("I6", records == _RESERVATIONS, f"the gate has {records} records of {_RESERVATIONS}")
    # So that later faults do not count it again at every failure of Redis.
    await call(run.clients.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=sale_id))


def faults() -> Iterator[Fault]:
    """The one."""
    yield Fault("redis wiped under 100,000 reservations", "redis", _wiped)
