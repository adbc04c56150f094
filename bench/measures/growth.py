"""What a purchase costs, from its acceptance to its settlement, while the databases grow a hundredfold; and what
connections, viewers and waiting purchases cost."""

import asyncio
import uuid
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.contest import Say, spread
from bench.load.run import run_load
from bench.measures.buyers import PRICE_MINOR, answers, plan_of
from bench.measures.bystanders import idle_connections, viewers
from bench.measures.pending import memory_of_pending
from bench.processor_time import processor_seconds, resident_mb, used_since
from bench.seeding import fund_accounts, open_sale, tokens_of
from bench.server_figures import query
from bench.settlement import OPEN, until_settled
from bench.site import Site
from mesh.postgres import Queries

NAME = "growth"
_USERS, _PURCHASES = 10_000, 10_000
_ROUNDS = 3
_MANY_ACCOUNTS, _MANY_PURCHASES, _MANY_SALES = 1_000_000, 1_000_000, 100
_CONNECTIONS, _VIEWERS = 10_000, 5_000
_SQL = Queries(Path(__file__).parent)


class _Cost:
    """Buys again and again in sales of the same size."""

    def __init__(self, site: Site, users: list[str], tokens: dict[str, str]) -> None:
        self._site = site
        self._users = users
        self._tokens = tokens

    async def once(self) -> dict[str, float]:
        """One sale; processor time of everything but the load generator, for each purchase, and rates."""
        site = self._site
        sale_id = await open_sale(site.clients, "Growth", _PURCHASES * 2, PRICE_MINOR)
        before = await asyncio.to_thread(processor_seconds, site.stack)
        results = await run_load(plan_of(site.environment["GATEWAY_URL"], sale_id, self._tokens, _PURCHASES))
        now = await until_settled(site.clients, sale_id, _PURCHASES)
        used = used_since(before, await asyncio.to_thread(processor_seconds, site.stack))
        return {
            "processor_us_per_purchase": sum(used.values()) / _PURCHASES * 1e6,
            "accepted_per_s": answers(results, 202)["per_s"],
            "settled_per_s": now.settled / now.settle_wall_s,
        }

    async def measured(self, name: str, say: Say) -> dict[str, Any]:
        """The spread of some sales' figures."""
        seen = [await self.once() for _ in range(_ROUNDS)]
        found = {figure: spread([each[figure] for each in seen]) for figure in seen[0]}
        say(f"  {name}: " + ", ".join(f"{figure} {value['median']:,.4g}" for figure, value in found.items()))
        return found


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Sales before and after each growth."""
    del rounds
    await site.configure(OPEN)
    users = [f"g{number:05}" for number in range(_USERS)]
    await fund_accounts(site.clients, dict.fromkeys(users, PRICE_MINOR * 1_000), uuid.uuid4().hex)
    tokens = await asyncio.to_thread(tokens_of, site.secret, users)
    cost = _Cost(site, users, tokens)
    await cost.once()
    seen: dict[str, Any] = {"small": await cost.measured("small", say)}
    await _many_accounts(site)
    seen["10^6 accounts"] = await cost.measured("10^6 accounts", say)
    for number in range(_MANY_SALES):
        await open_sale(site.clients, f"Other {number}", 1_000, PRICE_MINOR)
    seen["100 sales open"] = await cost.measured("100 sales open", say)
    await _many_purchases(site)
    seen["10^6 past purchases"] = await cost.measured("10^6 past purchases", say)
    seen["bystanders"] = await _bystanders(site, cost, say)
    # The last: what it leaves unsettled is discarded with the site.
    seen["pending"] = await memory_of_pending(site, tokens)
    say(f"  pending: {seen['pending']}")

    def per_purchase(name: str) -> float:
        return float(seen[name]["processor_us_per_purchase"]["median"])

    return {
        **seen,
        "ratios": {f"{name} / small": per_purchase(name) / per_purchase("small") for name in list(seen)[1:4]},
    }


async def _many_accounts(site: Site) -> None:
    """A million accounts, each with a deposit."""
    for statement in (_SQL.past_accounts, _SQL.past_deposits):
        await query(site.environment, "balance", statement, {"count": _MANY_ACCOUNTS})
    await query(site.environment, "balance", "VACUUM ANALYZE")


async def _many_purchases(site: Site) -> None:
    """A million confirmed purchases of a sale that is over, in all three databases."""
    sale_id = await open_sale(site.clients, "Past", _MANY_PURCHASES, PRICE_MINOR)
    facts = {"sale_id": sale_id, "count": _MANY_PURCHASES, "price": PRICE_MINOR}
    statements = {
        "purchase": (_SQL.past_purchases,),
        "inventory": (_SQL.past_reservations, _SQL.past_shares, _SQL.past_sale),
        "balance": (_SQL.past_holds,),
    }
    for database, each in statements.items():
        for statement in each:
            await query(site.environment, database, statement, facts)
        await query(site.environment, database, "VACUUM ANALYZE")


async def _bystanders(site: Site, cost: _Cost, say: Say) -> dict[str, Any]:
    """What connections and viewers cost, one kind after the other."""
    url = site.environment["GATEWAY_URL"]
    sale_id = await open_sale(site.clients, "Viewed", 1_000, PRICE_MINOR)
    kinds = {
        "connections": (_CONNECTIONS, idle_connections(url, _CONNECTIONS)),
        "viewers": (_VIEWERS, viewers(url, sale_id, _VIEWERS)),
    }
    found: dict[str, Any] = {}
    for name, (count, held) in kinds.items():
        found[name] = await _beside(site, cost, count, held)
        say(f"  {name}: {found[name]}")
    return found


async def _beside(site: Site, cost: _Cost, count: int, held: AbstractAsyncContextManager[None]) -> dict[str, Any]:
    """Memory of the gateway for each of ``count`` that are ``held`` open, and what a sale costs while they look on."""
    bare_mb = await asyncio.to_thread(resident_mb, site.stack, "gateway")
    async with held:
        with_mb = await asyncio.to_thread(resident_mb, site.stack, "gateway")
        return {"open": count, "kb_each": round((with_mb - bare_mb) * 1024 / count, 1), **await cost.once()}
