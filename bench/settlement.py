"""Measures settlement with the bucket open: `python -m bench.settlement`, on a stack that is up.

Reserves SHARES purchases through BatchCreatePurchases while the worker is stopped, starts it with a rate and a bucket
that do not bound it, and tells the time from the first claim to the last final state. The worker is then given back its
own settings. Exit code 0 only if every purchase was confirmed and every promise kept.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import uvloop
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from bench.audit.auditing import audit, verdict_lines
from bench.clients import Clients, call, open_clients
from bench.sale.follow import Following, read_summary
from bench.seeding import Seeded, SeedingError, seed
from mesh.errors import DomainError, reason_name
from mesh.settings import SettingsError, read_settings, setting
from stack import environment
from stack.errors import StackError
from stack.folder import StackFolder, locate
from stack.stack import stack_as_started

#: What the worker is given for the measurement: a pace beyond what it can do.
OPEN = {"SETTLEMENT_RATE_PER_S": "50000", "SETTLEMENT_BURST": "2000"}
_BATCH, _CALLS_AT_ONCE = 250, 4
#: Between two looks at how far it is, seconds. Each reads every purchase of the sale: ten a second took a fifth of
#: PostgreSQL's time. When it was over is in the purchases, and not when we looked.
_POLL_S = 0.5
_LIMIT_S = 120.0


@dataclass(frozen=True)
class SettlementSettings:
    """How much is settled."""

    shares: int = setting("purchases to settle", default=10_000, minimum=1, maximum=1_000_000)


async def reserve(clients: Clients, seeded: Seeded) -> None:
    """Buys one share for every buyer, in batches over gRPC. Raises SeedingError when one is refused."""
    slots = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def buy(first: int) -> None:
        wishes = [
            purchase.CreatePurchaseRequest(
                request_id=buyer.request_id, user_id=buyer.user_id, sale_id=seeded.sale_id, quantity=1
            )
            for buyer in seeded.buyers[first : first + _BATCH]
        ]
        async with slots:
            request = purchase.BatchCreatePurchasesRequest(requests=wishes)
            answer = await call(clients.purchase.BatchCreatePurchases, request)
        for outcome in answer.outcomes:
            if outcome.reason != ErrorReason.ERROR_REASON_UNSPECIFIED:
                raise SeedingError(f"a purchase was refused: {reason_name(outcome.reason)}")

    await asyncio.gather(*(buy(first) for first in range(0, len(seeded.buyers), _BATCH)))


async def until_settled(clients: Clients, sale_id: str, count: int) -> Following:
    """Waits until ``count`` purchases of a sale are final. Raises SeedingError when that takes too long."""
    now = Following()
    deadline = asyncio.get_running_loop().time() + _LIMIT_S
    while now.settled < count:
        if asyncio.get_running_loop().time() > deadline:
            raise SeedingError(f"{now.settled:,} of {count:,} settled after {_LIMIT_S:.0f} s")
        await asyncio.sleep(_POLL_S)
        await read_summary(clients, sale_id, now)
    return now


async def measure(settings: SettlementSettings, folder: StackFolder, values: Mapping[str, str]) -> bool:
    """Runs it and prints what it saw; whether all is well. Raises SeedingError, DomainError and StackError."""
    stack = stack_as_started(folder)
    async with open_clients(values) as clients:
        await asyncio.to_thread(stack.stop, "settlement")
        try:
            seeded = await seed(
                clients, values["GATEWAY_JWT_SECRET"], users=settings.shares, shares=settings.shares, poor=0.0
            )
            await reserve(clients, seeded)
            await asyncio.to_thread(stack_as_started(folder, OPEN).start_services)
            now = await until_settled(clients, seeded.sale_id, settings.shares)
        finally:
            await asyncio.to_thread(stack.start_services)
        findings = await audit(clients)
    per_s = settings.shares / max(now.settle_wall_s, 0.001)
    sys.stdout.write(
        f"{now.confirmed:,} of {settings.shares:,} purchases confirmed in {now.settle_wall_s:.2f} s ({per_s:,.0f}/s), "
        "from the first claim to the last final state\n"
    )
    sys.stdout.write("".join(f"{line}\n" for line in verdict_lines(findings)))
    return now.confirmed == settings.shares and not findings.violations


def main() -> int:
    """The process."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        settings = read_settings(SettlementSettings, "")
        values = environment.load()
        return 0 if uvloop.run(measure(settings, locate(os.environ)[0], values)) else 1
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (SeedingError, StackError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except DomainError as error:
        sys.stderr.write(f"{error.reason_name}: {error.message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
