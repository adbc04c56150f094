"""Refusals of one kind, in great number: what everybody is told, and what the servers have to do for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from bench.contest import Figures, Say
from bench.load.asking import ask_once
from bench.load.http_answers import facts_of
from bench.load.plan import Buyer, LoadPlan, purchases_at
from bench.load.process import LoadError, load_process
from bench.load.wrk import wrk
from bench.measures.buyers import plan_of
from bench.measures.stuck_purchases import StuckPurchases, stuck_purchases
from bench.seeding import tokens_of
from bench.server_figures import work_given
from bench.site import Site
from stack.peers import peer_files, transport_as

#: How long refusals are looked at, and as long is looked at without any, seconds.
_SECONDS = 10
_CONNECTIONS = 100
_SAMPLE_PAUSE_S = 0.05
#: Purchases that fill the queue, each in a call of its own. A gateway never keeps its queue shorter than 16.
_ROOM = 32
_FULL_S_MAX = 10.0
_FULL = {
    "GATEWAY_QUEUE_MIN": str(_ROOM),
    "GATEWAY_QUEUE_MAX": str(_ROOM),
    "GATEWAY_IN_FLIGHT_MAX": str(_ROOM),
    # The longest there is: until then nothing that is inside comes out. The flood is over after half of it.
    "GATEWAY_PURCHASE_TIMEOUT_MS": "30000",
}


@dataclass(frozen=True)
class Refusal:
    """An answer by which a purchase is refused."""

    status: int
    reason: str
    #: Whether the buyer is told when to return.
    returns: bool


class Asker:
    """A user who asks for a share of a sale, again and again."""

    def __init__(self, sale_id: str, user: str, token: str) -> None:
        self._sale_id = sale_id
        self._user = user
        self._token = token

    async def flood(self, url: str, seconds: int) -> Figures:
        """Asks as often as wrk can, always for the same purchase. Raises LoadError unless every answer is an error."""
        result = await wrk(
            f"{url}/v1/sales/{self._sale_id}/purchases",
            method="POST",
            headers=[
                {
                    "Authorization": f"Bearer {self._token}",
                    "Idempotency-Key": "refused",
                    "Content-Type": "application/json",
                }
            ],
            body='{"quantity":1}',
            connections=_CONNECTIONS,
            seconds=seconds,
        )
        if result.refused != result.requests or result.broken:
            raise LoadError(f"not every request was refused: {result}")
        return {"refused": result.requests, "per_s": result.per_s, "p99_ms": result.p99_ms}

    async def sample(self, url: str, wanted: Refusal, meanwhile: "asyncio.Future[Any]") -> int:
        """Asks for other purchases one by one until ``meanwhile`` is over; how many. Raises LoadError for an answer
        that is not as ``wanted``."""
        plan = LoadPlan(*purchases_at(url, self._sale_id), "", [])
        count = 0
        while not meanwhile.done():
            answer = await ask_once(plan, Buyer(self._user, self._token, f"sample-{count}"))
            told = Refusal(answer.status, facts_of(answer.body).reason, answer.retry_after_s is not None)
            if told != wanted:
                raise LoadError(f"a request was told {told} instead of {wanted}")
            count += 1
            await asyncio.sleep(_SAMPLE_PAUSE_S)
        return count


async def cost_of_refusing(site: Site, asker: Asker, refusal: Refusal, say: Say) -> dict[str, Any]:
    """What the servers are given while everybody is refused, and in exactly as long a time in which nobody asks.

    Raises LoadError when not everybody was refused, or an answer of the sample is another.
    """
    loop, url = asyncio.get_running_loop(), site.environment["GATEWAY_URL"]
    began = loop.time()
    first = await work_given(site)
    flood = asyncio.create_task(asker.flood(url, _SECONDS))
    try:
        sampled = await asker.sample(url, refusal, flood)
    finally:
        # It ends by itself, also when the sample was not as it should be.
        await asyncio.wait([flood])
    figures = flood.result()
    lasted_s = loop.time() - began
    second = await work_given(site)
    await asyncio.sleep(began + 2 * lasted_s - loop.time())
    third = await work_given(site)
    refusing = {name: second[name] - first[name] for name in first}
    idle = {name: third[name] - second[name] for name in first}
    beyond = {name: max(0, refusing[name] - idle[name]) for name in first}
    say(f"  {refusal.reason}: {figures['per_s']:,.0f}/s, servers' work {refusing}, idle {idle}")
    return {
        **figures,
        "sampled": sampled,
        "while refusing": refusing,
        "while idle": idle,
        "beyond idle, per 1,000 refused": sum(beyond.values()) / figures["refused"] * 1_000,
    }


@asynccontextmanager
async def full_queue(site: Site, sale_id: str) -> AsyncIterator[None]:
    """The gateway's queue is full when the block begins, and stays so for some 30 s.

    Its Purchase Service is one that never answers; the site's own goes on beside it as always, so that the servers'
    work can be compared. Leaves the gateway with these settings. Raises LoadError when something got in after all.
    """
    transport = transport_as(peer_files(site.environment, "purchase"))
    async with stuck_purchases(transport) as (target, stuck):
        await site.configure({**_FULL, "GATEWAY_PURCHASE_TARGET": target})
        tokens = tokens_of(site.secret, [f"inside-{number}" for number in range(_ROOM)])
        # They wait longer than the gateway does, and do not come back.
        plan = plan_of(site.environment["GATEWAY_URL"], sale_id, tokens, _ROOM, connections=_ROOM, attempts_max=1)
        async with load_process(msgspec.structs.replace(plan, answer_s_max=60.0)) as load:
            await load.wait_ready()
            await load.tell("start")
            await _until_full(stuck)
            yield
        if stuck.taken != _ROOM:
            raise LoadError(f"{stuck.taken - _ROOM} purchases got past a queue that was full")


async def _until_full(stuck: StuckPurchases) -> None:
    try:
        async with asyncio.timeout(_FULL_S_MAX):
            # No event: the server behind it only counts.
            while stuck.taken < _ROOM:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise LoadError(f"{stuck.taken} of {_ROOM} purchases got in within {_FULL_S_MAX:.0f} s") from error
