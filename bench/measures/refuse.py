"""How many requests a second are refused, sold out or 429, and that refusing costs the servers nothing (I9)."""

import json
import uuid
from typing import Any

from bench.contest import Figures, Say, alternate, median
from bench.load.run import run_load
from bench.measures.buyers import PRICE_MINOR, plan_of
from bench.measures.refusals import Asker, Refusal, cost_of_refusing, full_queue
from bench.peers.running import nginx
from bench.seeding import fund_accounts, open_sale, tokens_of
from bench.settlement import until_settled
from bench.site import Site

NAME = "refuse"
_SECONDS = 4
#: Enough that nobody waits for a turn: whom the rate of users refuses has come that far.
_STOCK = 1_000
#: One purchase and then none for 100 s, longer than refusals are looked at.
_RARELY = {"GATEWAY_USER_RATE_PER_S": "0.01", "GATEWAY_USER_BURST": "1"}
_SOLD_OUT = Refusal(409, "SOLD_OUT", returns=False)
_OVERLOADED = Refusal(429, "OVERLOADED", returns=True)
_TOO_OFTEN = Refusal(429, "USER_RATE_LIMITED", returns=True)
#: What the gateway answers when all is sold, as nginx returns it.
_CONSTANT = json.dumps(
    {
        "type": "about:blank",
        "title": "Sold Out",
        "status": 409,
        "detail": "no share is available now",
        "reason": "SOLD_OUT",
    }
)


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Leaves the site's gateway as it found it."""
    user = f"r{uuid.uuid4().hex[:8]}"
    await fund_accounts(site.clients, {user: PRICE_MINOR * 10}, user)
    tokens = tokens_of(site.secret, [user])
    url = site.environment["GATEWAY_URL"]

    async def bought_once(shares: int) -> Asker:
        """Of a sale of so many shares, with one sold and nothing left to do."""
        sale_id = await open_sale(site.clients, "Refuse", shares, PRICE_MINOR)
        await run_load(plan_of(url, sale_id, tokens, 1, connections=1))
        await until_settled(site.clients, sale_id, 1)
        return Asker(sale_id, user, tokens[user])

    asker = await bought_once(1)

    async def sold_out(_: int) -> Figures:
        return await asker.flood(url, _SECONDS)

    async def constant(_: int) -> Figures:
        async with nginx(_CONSTANT.replace("'", "")) as port:
            return await asker.flood(f"http://127.0.0.1:{port}", _SECONDS)

    seen: dict[str, Any] = await alternate(rounds, {"sold out": sold_out, "nginx constant": constant}, say)
    costs: dict[str, Any] = {"sold out": await cost_of_refusing(site, asker, _SOLD_OUT, say)}
    try:
        sale_id = await open_sale(site.clients, "Refuse, full", _STOCK, PRICE_MINOR)
        async with full_queue(site, sale_id):
            asker = Asker(sale_id, user, tokens[user])
            costs["overloaded"] = await cost_of_refusing(site, asker, _OVERLOADED, say)
        await site.configure(_RARELY)
        costs["too often"] = await cost_of_refusing(site, await bought_once(_STOCK), _TOO_OFTEN, say)
    finally:
        await site.configure()
    return {
        **seen,
        "work_of_servers": costs,
        "ratios": {
            "sold out / nginx constant": median(seen, "sold out", "per_s") / median(seen, "nginx constant", "per_s"),
            "servers' work / 1,000 refused": max(each["beyond idle, per 1,000 refused"] for each in costs.values()),
        },
    }
