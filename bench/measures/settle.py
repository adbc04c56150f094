"""How fast accepted purchases are settled with the bucket open, beside a hold for each transaction in pgbench; and that
the pace is kept with any number of workers."""

import asyncio
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as balance

from bench.clients import call
from bench.contest import Figures, Say, alternate, median
from bench.peers.limits import CLIENTS, pgbench, prepare_holds
from bench.seeding import seed
from bench.settlement import OPEN, reserve, until_settled
from bench.site import Site
from stack.replicas import Replicas

NAME = "settle"
REPLICAS = Replicas(settlement=4)
_PURCHASES, _PACED = 50_000, 3_000
_SECONDS = 3
_WORKERS = (1, 2, 4)
#: Clients of the pgbench that settling is compared with.
_COMPARED = 16


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Both."""
    url = await asyncio.to_thread(prepare_holds, site.environment)
    one = Replicas()

    async def settled(_: int) -> Figures:
        await site.configure(replicas=one)
        await site.stop("settlement")
        seeded = await seed(site.clients, site.secret, users=_PURCHASES, shares=_PURCHASES, poor=0.0)
        await reserve(site.clients, seeded)
        await site.configure(OPEN, replicas=one)
        now = await until_settled(site.clients, seeded.sale_id, _PURCHASES)
        return {"per_s": now.confirmed / now.settle_wall_s, "confirmed": now.confirmed, "wall_s": now.settle_wall_s}

    def holds(clients: int) -> Any:
        async def play(_: int) -> Figures:
            return {"per_s": await pgbench(url, clients, _SECONDS)}

        return play

    contestants = {"settle": settled} | {f"pgbench {clients} clients": holds(clients) for clients in CLIENTS}
    seen: dict[str, Any] = await alternate(rounds, contestants, say)
    best = max(median(seen, f"pgbench {clients} clients", "per_s") for clients in CLIENTS)
    per_s = median(seen, "settle", "per_s")
    pace = {}
    for workers in _WORKERS:
        pace[f"{workers} workers"] = await _paced(site, workers)
        say(f"  {workers} workers: {pace[f'{workers} workers']}")
    await site.configure(replicas=one)
    return {
        **seen,
        "pace": pace,
        "ratios": {
            f"settle / pgbench {_COMPARED} clients": per_s / median(seen, f"pgbench {_COMPARED} clients", "per_s"),
            "settle / pgbench at its best": per_s / best,
        },
    }


async def _paced(site: Site, workers: int) -> dict[str, float]:
    """Settles at the default pace; the busiest second of the Balance Service."""
    await site.configure(replicas=Replicas(settlement=workers))
    seeded = await seed(site.clients, site.secret, users=_PACED, shares=_PACED, poor=0.0)
    await reserve(site.clients, seeded)
    now = await until_settled(site.clients, seeded.sale_id, _PACED)
    books = await call(site.clients.balance.CheckBooks, balance.CheckBooksRequest(beneficiary=seeded.sale_id))
    return {
        "holds_in_the_busiest_second": int(books.holds_per_s_max),
        "per_s": round(now.confirmed / now.settle_wall_s, 1),
    }
