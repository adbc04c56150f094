"""How many purchases a second are accepted, durable and published, while stock lasts: through HTTP and gRPC, beside
what people would use instead."""

import asyncio
import uuid
from contextlib import AbstractAsyncContextManager
from typing import Any

from bench.contest import Contestant, Figures, Say, alternate, median
from bench.load.rpc_plan import RpcPlan
from bench.load.run import run_load, run_rpcs
from bench.measures.buyers import PRICE_MINOR, answers, plan_of
from bench.peers.limits import redis_benchmark
from bench.peers.running import PeerError, bare_grpc, open_peer_sale, redis_and_celery, row_locks
from bench.processor_time import processor_seconds, used_since
from bench.seeding import fund_accounts, open_sale, tokens_of
from bench.server_figures import recorded
from bench.site import Site

NAME = "accept"
_USERS, _STOCK = 20_000, 5_000_000
#: Purchases of one round, by contestant: about the same time for each.
_OURS, _PEERS = 50_000, 4_000
_SECONDS = 4.0
#: Unary calls under way: what suits ours and makes no difference to a bare handler.
_UNARY_AT_ONCE = 400
#: A peer below this has not been given what it needs, and nothing may be compared with it.
_ROW_LOCKS_MIN_PER_S = 700.0
_ACCEPTED = 202
_DECREMENTS = "redis-benchmark DECRBY"


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Needs a site of its own: what is accepted here is not settled before it is discarded."""
    users = [f"a{number:05}" for number in range(_USERS)]
    await fund_accounts(site.clients, dict.fromkeys(users, PRICE_MINOR * 1_000), uuid.uuid4().hex)
    sale_id = await open_sale(site.clients, "Accept", _STOCK, PRICE_MINOR, per_user_limit=_STOCK)
    tokens = await asyncio.to_thread(tokens_of, site.secret, users)
    peer = await asyncio.to_thread(open_peer_sale, site.environment, users, _STOCK, PRICE_MINOR)
    processor: dict[str, float] = {}

    async def through_http(_: int) -> Figures:
        await site.configure()
        before = await asyncio.to_thread(processor_seconds, site.stack)
        results = await run_load(plan_of(site.environment["GATEWAY_URL"], sale_id, tokens, _OURS))
        used = used_since(before, await asyncio.to_thread(processor_seconds, site.stack))
        processor.update({**used, "load generator": round(results.cpu_s, 2)})
        return {**answers(results, _ACCEPTED), "errors": results.errors, "shed": results.shed_429}

    async def rpc(kind: str, at_once: int, bare: str = "") -> Figures:
        run = uuid.uuid4().hex[:8]
        given: dict[str, Any] = {"sale_id": sale_id, "run": run, "at_once": at_once, "seconds": _SECONDS}
        # The bare handler is measured as people would write it, without certificates.
        if bare:
            plan = RpcPlan(bare, {}, "", kind, users, **given)
        else:
            plan = RpcPlan.of(site.environment, kind, users, **given)
        results = await run_rpcs(plan)
        return {
            "per_s": results.answered / results.wall_s,
            "p99_ms": results.p99_ms,
            "refused": sum(results.refused.values()),
        }

    async def through_batches(_: int) -> Figures:
        await site.configure()
        return await rpc("batch", 8)

    async def through_unary(_: int) -> Figures:
        return await rpc("create", _UNARY_AT_ONCE)

    async def bare(_: int) -> Figures:
        await site.stop("settlement")
        async with bare_grpc() as port:
            return await rpc("create", _UNARY_AT_ONCE, f"127.0.0.1:{port}")

    async def peer_figures(serving: AbstractAsyncContextManager[int]) -> Figures:
        # The peers have the machine for themselves: nothing of ours is settled meanwhile.
        await site.stop("settlement")
        async with serving as port:
            plan = plan_of(f"http://127.0.0.1:{port}", peer.sale_id, tokens, _PEERS, connections=100)
            results = await run_load(plan)
        return {**answers(results, _ACCEPTED), "errors": results.errors}

    async def decrements(_: int) -> Figures:
        await site.stop("settlement")
        return {"per_s": await redis_benchmark(site.environment)}

    contestants: dict[str, Contestant] = {
        "http": through_http,
        "fastapi row locks": lambda _: peer_figures(row_locks(peer)),
        "fastapi redis celery": lambda _: peer_figures(redis_and_celery(peer)),
        "grpc batches": through_batches,
        "grpc unary": through_unary,
        "bare grpc unary": bare,
        _DECREMENTS: decrements,
    }
    seen: dict[str, Any] = await alternate(rounds, contestants, say)
    if median(seen, "fastapi row locks", "per_s") < _ROW_LOCKS_MIN_PER_S:
        raise PeerError(f"FastAPI with row locks accepts less than {_ROW_LOCKS_MIN_PER_S:g}/s here: the run is void")
    http, unary = median(seen, "http", "per_s"), median(seen, "grpc unary", "per_s")
    decremented = median(seen, _DECREMENTS, "per_s")
    # Told apart from the others, for it accepts nothing: it is the least that any gate in Redis does for a purchase.
    limits = {_DECREMENTS: seen.pop(_DECREMENTS)}
    return {
        **seen,
        "limits": limits,
        "processor_s_of_the_last_http_round": processor,
        "recorded": await recorded(site.environment, sale_id),
        "ratios": {
            "http / fastapi row locks": http / median(seen, "fastapi row locks", "per_s"),
            "http / fastapi redis celery": http / median(seen, "fastapi redis celery", "per_s"),
            "grpc unary / bare grpc unary": unary / median(seen, "bare grpc unary", "per_s"),
            "grpc batches / http": median(seen, "grpc batches", "per_s") / http,
            f"http / {_DECREMENTS}": http / decremented,
        },
    }
