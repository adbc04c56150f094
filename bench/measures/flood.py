"""Whether reading balances as fast as can be slows settlement down, or brings the Balance Service down."""

import asyncio
import uuid
from collections.abc import Awaitable
from typing import Any

from bench.contest import Say
from bench.load.rpc_plan import RpcPlan
from bench.load.run import run_rpcs
from bench.load.wrk import wrk
from bench.processor_time import resident_mb
from bench.sale.follow import Following, read_summary
from bench.seeding import Seeded, seed
from bench.settlement import reserve
from bench.site import Site

NAME = "flood"
#: Enough to settle for all the time, at the pace of the default settings.
_PURCHASES, _RATE_PER_S = 26_000, 500
_SECONDS = 10
_CONNECTIONS, _AT_ONCE = 200, 200
#: Whose balances are asked for, in turn.
_USERS = 1_000


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """The pace of settlement alone, under a flood through HTTP, and under one through gRPC."""
    del rounds
    seeded = await seed(site.clients, site.secret, users=_PURCHASES, shares=_PURCHASES, poor=0.0)
    await reserve(site.clients, seeded)
    pid = await asyncio.to_thread(site.stack.pid, "balance")
    seen: dict[str, Any] = {}
    floods = {
        "nothing else": asyncio.sleep(_SECONDS, {}),
        "http": _http(site, seeded),
        "grpc": _grpc(site, seeded),
        "http again": _http(site, seeded),
    }
    for name, flood in floods.items():
        settled_per_s, told = await _pace_during(site, seeded, flood)
        memory = await asyncio.to_thread(resident_mb, site.stack, "balance")
        seen[name] = {**told, "settled_per_s": round(settled_per_s, 1), "balance_memory_mb": round(memory, 1)}
        say(f"  {name}: {seen[name]}")
    crashed = await asyncio.to_thread(site.stack.pid, "balance") != pid
    least = min(seen[name]["settled_per_s"] for name in ("http", "grpc", "http again"))
    return {**seen, "balance_crashed": crashed, "ratios": {"settlement under flood / asked for": least / _RATE_PER_S}}


async def _pace_during(site: Site, seeded: Seeded, flood: Awaitable[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """Purchases settled per second while a flood lasts, and what it saw."""
    now = Following()
    loop = asyncio.get_running_loop()
    await read_summary(site.clients, seeded.sale_id, now)
    before, began = now.settled, loop.time()
    told = await flood
    await read_summary(site.clients, seeded.sale_id, now)
    return (now.settled - before) / (loop.time() - began), told


async def _http(site: Site, seeded: Seeded) -> dict[str, Any]:
    url = f"{site.environment['GATEWAY_URL']}/v1/balance?currency=EUR"
    headers = [{"Authorization": f"Bearer {buyer.token}"} for buyer in seeded.buyers[:_USERS]]
    result = await wrk(url, method="GET", headers=headers, body="", connections=_CONNECTIONS, seconds=_SECONDS)
    return {
        "asked_per_s": round(result.per_s),
        "answered_per_s": round((result.requests - result.refused) / result.wall_s),
        "broken": result.broken,
        "p99_ms": round(result.p99_ms, 1),
    }


async def _grpc(site: Site, seeded: Seeded) -> dict[str, Any]:
    users = [buyer.user_id for buyer in seeded.buyers[:_USERS]]
    plan = RpcPlan.of(site.environment, "balance", users, run=uuid.uuid4().hex[:8], at_once=_AT_ONCE, seconds=_SECONDS)
    results = await run_rpcs(plan)
    return {
        "asked_per_s": round((results.answered + sum(results.refused.values())) / results.wall_s),
        "answered_per_s": round(results.answered / results.wall_s),
        "refused": results.refused,
        "p99_ms": round(results.p99_ms, 1),
    }
