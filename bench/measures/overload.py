"""What comes of one to ten times as many purchases as there is capacity for, in an open loop: nobody waits to send
until others are answered."""

import asyncio
import uuid
from typing import Any

from bench.contest import Say
from bench.load.plan import first_latencies
from bench.load.run import run_load
from bench.measures.buyers import PRICE_MINOR, answers, plan_of
from bench.percentiles import percentile
from bench.seeding import fund_accounts, open_sale, tokens_of
from bench.site import Site

NAME = "overload"
#: Set so low that the load generator can offer ten times as much, purchases/s.
_CAPACITY_PER_S = 2_000
_UNLOADED = 0.5
_FACTORS = (_UNLOADED, 1, 2, 5, 10)
#: How long each is offered, and how much of its beginning is left out: the rush that an overload begins with is let in.
_SECONDS, _RUSH_S = 8, 3.0
_USERS, _STOCK, _CONNECTIONS = 20_000, 5_000_000, 4_000


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Every factor in every round; figures are medians over the rounds that there is time for."""
    del rounds
    await site.configure({"PURCHASE_RATE_MAX_PER_S": str(_CAPACITY_PER_S)})
    users = [f"o{number:05}" for number in range(_USERS)]
    await fund_accounts(site.clients, dict.fromkeys(users, PRICE_MINOR * 1_000), uuid.uuid4().hex)
    sale_id = await open_sale(site.clients, "Overload", _STOCK, PRICE_MINOR)
    tokens = await asyncio.to_thread(tokens_of, site.secret, users)
    curve: dict[str, dict[str, float]] = {}
    for factor in _FACTORS:
        offered = _CAPACITY_PER_S * factor
        plan = plan_of(
            site.environment["GATEWAY_URL"],
            sale_id,
            tokens,
            int(offered * _SECONDS),
            connections=_CONNECTIONS,
            attempts_max=1,
            offered_per_s=offered,
        )
        results = await run_load(plan)
        buyers = results.buyers[int(offered * _RUSH_S) :]
        latencies = first_latencies(buyers, 202)
        shed = sum(1 for buyer in buyers if buyer.first_status == 429)
        curve[f"{factor:g}x"] = {
            "offered_per_s": offered,
            "goodput_per_s": round(len(latencies) / (_SECONDS - _RUSH_S), 1),
            "accepted_p50_ms": round(percentile(latencies, 50), 1),
            "accepted_p99_ms": round(percentile(latencies, 99), 1),
            "accepted_p99_with_the_rush_ms": round(answers(results, 202)["p99_ms"], 1),
            "shed_share": round(shed / len(buyers), 4),
            "errors": results.errors,
            "generator_processor_s": round(results.cpu_s, 2),
        }
        say(f"  {factor:g}x: {curve[f'{factor:g}x']}")
    peak = max(point["goodput_per_s"] for point in curve.values())
    most, calm = curve[f"{_FACTORS[-1]:g}x"], curve[f"{_UNLOADED:g}x"]
    return {
        "curve": curve,
        "ratios": {
            "goodput at 10x / peak": most["goodput_per_s"] / peak,
            "accepted p99 at 10x / unloaded": most["accepted_p99_ms"] / calm["accepted_p99_ms"],
        },
    }
