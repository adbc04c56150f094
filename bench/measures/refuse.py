"""How many requests a second are refused, sold out or 429, and that refusing costs the servers nothing (I9)."""

import asyncio
import json
import uuid
from typing import Any

from bench.contest import Figures, Say, alternate, median
from bench.load.process import LoadError
from bench.load.run import run_load
from bench.load.wrk import WrkResult, wrk
from bench.measures.buyers import PRICE_MINOR, plan_of, tokens_of
from bench.peers.running import nginx
from bench.seeding import fund_accounts, open_sale
from bench.server_figures import work_given
from bench.site import Site

NAME = "refuse"
_SECONDS, _CONNECTIONS = 4, 100
_BODY = '{"quantity":1}'
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
    sale_id = await open_sale(site.clients, "Refuse", 1, PRICE_MINOR)
    url = site.environment["GATEWAY_URL"]
    tokens = tokens_of(site.secret, [user])
    await run_load(plan_of(url, sale_id, tokens, 1, connections=1))
    path = f"/v1/sales/{sale_id}/purchases"

    async def ask(base: str) -> WrkResult:
        headers = {
            "Authorization": f"Bearer {tokens[user]}",
            "Idempotency-Key": "refused",
            "Content-Type": "application/json",
        }
        return await wrk(
            base + path, method="POST", headers=headers, body=_BODY, connections=_CONNECTIONS, seconds=_SECONDS
        )

    def figures(result: WrkResult) -> Figures:
        if result.refused != result.requests or result.broken:
            raise LoadError(f"not every request was refused: {result}")
        return {"per_s": result.per_s, "p99_ms": result.p99_ms}

    async def sold_out(_: int) -> Figures:
        return figures(await ask(url))

    async def constant(_: int) -> Figures:
        async with nginx(_CONSTANT.replace("'", "")) as port:
            return figures(await ask(f"http://127.0.0.1:{port}"))

    seen: dict[str, Any] = await alternate(rounds, {"sold out": sold_out, "nginx constant": constant}, say)
    work = {"sold out": await _work(site, ask, url)}
    return {
        **seen,
        "work_of_servers": work,
        "ratios": {
            "sold out / nginx constant": median(seen, "sold out", "per_s") / median(seen, "nginx constant", "per_s")
        },
    }


async def _work(site: Site, ask: Any, url: str) -> dict[str, Any]:
    """What the servers were given while requests were refused, and in as long a time without any."""
    first = await work_given(site)
    began = asyncio.get_running_loop().time()
    result = await ask(url)
    took_s = asyncio.get_running_loop().time() - began
    second = await work_given(site)
    await asyncio.sleep(took_s)
    third = await work_given(site)
    return {
        "refused": result.requests,
        "while refusing": {name: second[name] - first[name] for name in first},
        "while idle": {name: third[name] - second[name] for name in first},
    }
