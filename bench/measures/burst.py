"""The burst itself: 50,000 users at once for 10,000 shares of a sale that has just been opened."""

import asyncio
from typing import Any

from bench.contest import Figures, Say, alternate
from bench.load.constant_server import measure_ceiling
from bench.load.plan import LoadPlan, purchases_at
from bench.load.run import run_load
from bench.measures.buyers import answers
from bench.processor_time import processor_seconds, used_since
from bench.seeding import seed
from bench.site import Site

NAME = "burst"
_USERS, _SHARES, _CONNECTIONS = 50_000, 10_000, 2_000


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Bursts, and the load generator's own against a server that answers a constant."""
    processor: list[dict[str, float]] = []

    async def burst(_: int) -> Figures:
        seeded = await seed(site.clients, site.secret, users=_USERS, shares=_SHARES, poor=0.05)
        where = purchases_at(site.environment["GATEWAY_URL"], seeded.sale_id)
        plan = LoadPlan(*where, "", list(seeded.buyers), _CONNECTIONS)
        before = await asyncio.to_thread(processor_seconds, site.stack)
        results = await run_load(plan)
        used = used_since(before, await asyncio.to_thread(processor_seconds, site.stack))
        processor.append({**used, "load generator": round(results.cpu_s, 2)})
        accepted, refused = answers(results, 202), answers(results, 409)
        return {
            "wall_s": results.burst_wall_s,
            "accepted": sum(1 for buyer in results.buyers if buyer.first_status == 202),
            "accepted_p50_ms": accepted["p50_ms"],
            "accepted_p99_ms": accepted["p99_ms"],
            "accepted_max_ms": accepted["max_ms"],
            "refused_p50_ms": refused["p50_ms"],
            "refused_p99_ms": refused["p99_ms"],
            "refused_max_ms": refused["max_ms"],
            "shed": results.shed_429,
            "errors": results.errors,
        }

    async def ceiling(_: int) -> Figures:
        results = await measure_ceiling(_USERS, _CONNECTIONS)
        return {"wall_s": results.burst_wall_s, "processor_s": results.cpu_s}

    seen: dict[str, Any] = await alternate(rounds, {"burst": burst, "load generator's ceiling": ceiling}, say)
    return {**seen, "processor_s": processor}
