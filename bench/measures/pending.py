"""What a purchase costs in memory from its acceptance to its settlement."""

import asyncio
from dataclasses import dataclass
from typing import Any

from bench.load.process import LoadError
from bench.load.run import run_load
from bench.measures.buyers import PRICE_MINOR, plan_of
from bench.processor_time import resident_mb
from bench.sale.follow import Following, read_summary
from bench.seeding import open_sale
from bench.server_figures import recorded, redis_memory
from bench.site import Site

#: Purchases accepted before the first look, so that everything that does not grow with them has its size, and after it.
_BEFORE, _PENDING = 10_000, 20_000
#: The slowest pace there is: the worker runs, and takes what it takes of the queue, but hardly anything is settled.
_HARDLY = {"SETTLEMENT_RATE_PER_S": "1", "SETTLEMENT_BURST": "10"}


@dataclass(frozen=True)
class _Look:
    """A moment: purchases that are accepted and not settled, and bytes by process."""

    pending: int
    memory: dict[str, int]


async def memory_of_pending(site: Site, tokens: dict[str, str]) -> dict[str, Any]:
    """Bytes for each pending purchase: memory resident in each service, and what Redis has allocated.

    Starts the services anew: a heap that was larger once would take them in without growing. Wants at most 10,000
    users, so that all of them are known at the first look. Leaves the purchases unsettled. Raises LoadError when one is
    not accepted.
    """
    assert len(tokens) <= _BEFORE
    await site.stop(*reversed(site.stack.service_names))
    await site.configure(_HARDLY)
    count = _BEFORE + _PENDING
    sale_id = await open_sale(site.clients, "Pending", count, PRICE_MINOR, per_user_limit=count)
    await _accept(site, sale_id, tokens, _BEFORE)
    before = await _look(site, sale_id)
    await _accept(site, sale_id, tokens, _PENDING)
    after = await _look(site, sale_id)
    more = after.pending - before.pending
    if more < _PENDING * 0.9:
        raise LoadError(f"of {_PENDING:,} purchases only {more:,} wait to be settled")
    each = {name: round((after.memory[name] - before.memory[name]) / more) for name in after.memory}
    return {"purchases": more, "bytes_each": each, "bytes_each_in_all": sum(each.values())}


async def _accept(site: Site, sale_id: str, tokens: dict[str, str], count: int) -> None:
    results = await run_load(plan_of(site.environment["GATEWAY_URL"], sale_id, tokens, count))
    accepted = sum(1 for buyer in results.buyers if buyer.first_status == 202)
    if accepted != count:
        raise LoadError(f"{accepted:,} of {count:,} purchases were accepted: {results.error_kinds}")


async def _look(site: Site, sale_id: str) -> _Look:
    """Once all that was accepted is queued."""
    await recorded(site.environment, sale_id)
    now = Following()
    await read_summary(site.clients, sale_id, now)
    memory = {
        name: int(await asyncio.to_thread(resident_mb, site.stack, name) * 1024 * 1024)
        for name in site.stack.service_names
    }
    return _Look(now.unfinished, {**memory, "redis": await redis_memory(site.environment)})
