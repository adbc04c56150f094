"""What mutual TLS costs where calls carry batches: purchases accepted a second with it and without."""

import uuid
from typing import Any

from bench.contest import Contestant, Figures, Say, alternate, median
from bench.load.rpc_plan import RpcPlan
from bench.load.run import run_rpcs
from bench.measures.buyers import PRICE_MINOR
from bench.seeding import fund_accounts, open_sale
from bench.site import Site

NAME = "mtls"
_USERS, _STOCK = 20_000, 5_000_000
_SECONDS, _AT_ONCE = 4.0, 8


async def measure(site: Site, rounds: int, say: Say) -> dict[str, Any]:
    """Needs a site of its own: what is accepted here is not settled before it is discarded. Every service is started
    anew before each measurement, so both begin alike; the site is left with mutual TLS."""
    users = [f"t{number:05}" for number in range(_USERS)]
    await fund_accounts(site.clients, dict.fromkeys(users, PRICE_MINOR * 1_000), uuid.uuid4().hex)
    sale_id = await open_sale(site.clients, "Mutual TLS", _STOCK, PRICE_MINOR, per_user_limit=_STOCK)

    def accepted(switch: str) -> Contestant:
        async def play(_: int) -> Figures:
            environment = await site.configure({"MESH_TLS": switch})
            # Settled by nobody meanwhile: its processor time would blur what is compared.
            await site.stop("settlement")
            run = uuid.uuid4().hex[:8]
            plan = RpcPlan.of(environment, "batch", users, sale_id=sale_id, run=run, at_once=_AT_ONCE, seconds=_SECONDS)
            results = await run_rpcs(plan)
            return {
                "per_s": results.answered / results.wall_s,
                "p99_ms": results.p99_ms,
                "refused": sum(results.refused.values()),
            }

        return play

    seen: dict[str, Any] = await alternate(rounds, {"mutual tls": accepted("on"), "plaintext": accepted("off")}, say)
    await site.configure({"MESH_TLS": "on"})
    ratio = median(seen, "mutual tls", "per_s") / median(seen, "plaintext", "per_s")
    return {**seen, "ratios": {"batches with mutual tls / in the clear": ratio}}
