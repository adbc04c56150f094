"""Buyers for the benchmarks: plans of many requests by a set of users, and what their answers come to."""

import itertools
import uuid

from bench.contest import Figures
from bench.load.plan import Buyer, LoadPlan, LoadResults, first_latencies, purchases_at
from bench.percentiles import percentile

PRICE_MINOR = 100


def plan_of(
    url: str,
    sale_id: str,
    tokens: dict[str, str],
    count: int,
    *,
    connections: int = 500,
    attempts_max: int = 60,
    offered_per_s: float = 0.0,
) -> LoadPlan:
    """``count`` purchases of one share, the users in turn, each with a request id of its own."""
    run, turns = uuid.uuid4().hex[:8], itertools.islice(itertools.cycle(tokens.items()), count)
    buyers = [Buyer(user, token, f"{run}-{number}") for number, (user, token) in enumerate(turns)]
    return LoadPlan(
        *purchases_at(url, sale_id),
        "",
        buyers,
        connections,
        attempts_max=attempts_max,
        offered_per_s=offered_per_s,
    )


def answers(results: LoadResults, status: int) -> Figures:
    """Rate and times, milliseconds, of the answers with one status."""
    latencies = first_latencies(results.buyers, status)
    return {
        "per_s": len(latencies) / results.burst_wall_s if results.burst_wall_s else 0.0,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "max_ms": percentile(latencies, 100),
    }
