"""How many purchases a second are accepted, durable and published, while stock lasts: through HTTP and gRPC, beside
what people would use instead."""

import asyncio
import uuid
from typing import Any

from bench.contest import Figures, Say, alternate, median
from bench.load.plan import LoadPlan
from bench.load.rpc_plan import RpcPlan
from bench.load.run import run_load, run_rpcs
from bench.measures.buyers import PRICE_MINOR, answers, plan_of, tokens_of
from bench.peers.running import PeerError, bare_grpc, open_peer_sale, redis_and_celery, row_locks
from bench.processor_time import processor_seconds, used_since
from bench.seeding import fund_accounts, open_sale
from bench.server_figures import query
from bench.site import Site

NAME = "accept"
_USERS, _STOCK = 20_000, 5_000_000
#: Purchases of one round, by contestant: about the same time for each.
_OURS, _PEERS = 50_000, 4_000
_SECONDS = 4.0
#: A peer below this has not been given what it needs, and nothing may be compared with it.
_ROW_LOCKS_MIN_PER_S = 700.0
_ACCEPTED = 202


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

    async def rpc(kind: str, target: str, at_once: int) -> Figures:
        plan = RpcPlan(target, kind, users, sale_id, uuid.uuid4().hex[:8], at_once, seconds=_SECONDS)
        results = await run_rpcs(plan)
        return {
            "per_s": results.answered / results.wall_s,
            "p99_ms": results.p99_ms,
            "refused": sum(results.refused.values()),
        }

    async def through_batches(_: int) -> Figures:
        await site.configure()
        return await rpc("batch", site.environment["PURCHASE_TARGET"], 8)

    async def through_unary(_: int) -> Figures:
        return await rpc("create", site.environment["PURCHASE_TARGET"], 200)

    async def bare(_: int) -> Figures:
        await site.stop("settlement")
        async with bare_grpc() as port:
            return await rpc("create", f"127.0.0.1:{port}", 200)

    async def peer_figures(plan: LoadPlan) -> Figures:
        results = await run_load(plan)
        return {**answers(results, _ACCEPTED), "errors": results.errors}

    async def with_row_locks(_: int) -> Figures:
        # The peers have the machine for themselves: nothing of ours is settled meanwhile.
        await site.stop("settlement")
        async with row_locks(peer) as port:
            plan = plan_of(f"http://127.0.0.1:{port}", peer.sale_id, tokens, _PEERS, connections=100)
            return await peer_figures(plan)

    async def with_celery(_: int) -> Figures:
        await site.stop("settlement")
        async with redis_and_celery(peer) as port:
            plan = plan_of(f"http://127.0.0.1:{port}", peer.sale_id, tokens, _PEERS, connections=100)
            return await peer_figures(plan)

    contestants = {
        "http": through_http,
        "fastapi row locks": with_row_locks,
        "fastapi redis celery": with_celery,
        "grpc batches": through_batches,
        "grpc unary": through_unary,
        "bare grpc unary": bare,
    }
    seen: dict[str, Any] = await alternate(rounds, contestants, say)
    if median(seen, "fastapi row locks", "per_s") < _ROW_LOCKS_MIN_PER_S:
        raise PeerError(f"FastAPI with row locks accepts less than {_ROW_LOCKS_MIN_PER_S:g}/s here: the run is void")
    http, unary = median(seen, "http", "per_s"), median(seen, "grpc unary", "per_s")
    return {
        **seen,
        "processor_s_of_the_last_http_round": processor,
        "recorded": await _recorded(site, sale_id),
        "ratios": {
            "http / fastapi row locks": http / median(seen, "fastapi row locks", "per_s"),
            "http / fastapi redis celery": http / median(seen, "fastapi redis celery", "per_s"),
            "grpc unary / bare grpc unary": unary / median(seen, "bare grpc unary", "per_s"),
            "grpc batches / http": median(seen, "grpc batches", "per_s") / http,
        },
    }


async def _recorded(site: Site, sale_id: str) -> dict[str, int]:
    """What the database has of the sale, and how much of it is known to be queued; waits for the last messages."""
    rows = [(0, 0)]
    for _ in range(100):
        sql = (
            "SELECT count(*), count(coalesce(p.queue_time, b.queue_time)) FROM purchases p"
            " LEFT JOIN queued_batches b USING (batch_id) WHERE sale_id = %(sale_id)s"
        )
        rows = await query(site.environment, "purchase", sql, {"sale_id": sale_id})
        if rows[0][0] == rows[0][1]:
            break
        await asyncio.sleep(0.1)
    return {"purchases": int(rows[0][0]), "queued": int(rows[0][1])}
