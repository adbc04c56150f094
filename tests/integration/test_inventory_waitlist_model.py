"""The line under whatever is done and lost in whatever order: nobody is served before their turn, no unit is promised
twice, none is lost, and at rest Redis equals SQL."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inventory_svc.eligibility import Eligibility
from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.outbox import Move
from inventory_svc.promoter import Promoter
from inventory_svc.reaper import Reaper
from inventory_svc.recalibration import RecalibrationMetrics, Recalibrator
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.reserving import Reserving
from inventory_svc.sale import SaleState, SaleTerms, Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import StockGate, gate_key
from inventory_svc.waitlist import Line
from inventory_svc.waitlist_book import WaitlistBook
from mesh.errors import DomainError
from mesh.identity import purchase_id
from mesh.metrics import Metrics
from mesh.postgres import Pool, open_pool
from mesh.redis_pool import open_redis
from tests.support.servers import Servers

TOTAL, WISHES = 3, 9


@dataclass
class Parts:
    """The service without its background tasks, so that nothing happens but what a test does."""

    redis: Any
    pool: Pool
    gate: StockGate
    sales: SaleBook
    book: ReservationBook
    waitlist: WaitlistBook
    reserving: Reserving
    moves: GateMoves
    recalibrator: Recalibrator
    reaper: Reaper
    promoter: Promoter

    async def rows(self, query: str, sale_id: str) -> list[Any]:
        async with self.pool.connection() as conn:
            return await (await conn.execute(query.encode(), {"sale_id": sale_id})).fetchall()


@pytest_asyncio.fixture(scope="module")
async def parts(servers: Servers) -> AsyncIterator[Parts]:
    def ignore(*_: object) -> None:
        return None

    url = servers.migrated_database("inventory")
    async with open_pool(url, name="model", size=3) as pool, open_redis(servers.redis_url) as redis:
        gate, sales, book, waitlist = StockGate(redis), SaleBook(pool), ReservationBook(pool), WaitlistBook(pool)
        proofs = GrantProofs(gate)
        moves = GateMoves(gate, sales, book, changed=ignore, stale=ignore)
        metrics = RecalibrationMetrics(Metrics())
        yield Parts(
            redis,
            pool,
            gate,
            sales,
            book,
            waitlist,
            Reserving(
                gate, sales, book, waitlist, proofs, Eligibility(pool), changed=ignore, joined=ignore, stale=ignore
            ),
            moves,
            Recalibrator(gate, sales, pool, lease_ms=5_000, in_service=ignore, metrics=metrics),
            Reaper(gate, sales, book, waitlist, grant_age_max_ms=0, changed=ignore),
            Promoter(gate, waitlist, moves, proofs),
        )


@dataclass
class Sale:
    """A sale under test: its wishes, and the moves that were committed and not followed, or may be replayed."""

    sale_id: str
    overtaking_allowed: bool
    wishes: list[Wish] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(WISHES):
            user, request = f"u{number % 4}", f"r{number}"
            key = str(purchase_id(user, self.sale_id, request))
            self.wishes.append(Wish(key, self.sale_id, user, request, 1 + number % 2, joins=number % 5 != 0))

    @property
    def line(self) -> Line:
        return Line(self.sale_id, "OPEN", self.overtaking_allowed)


_RESERVATIONS = "SELECT reservation_id::text FROM reservations WHERE sale_id = %(sale_id)s AND state"
CHOICES = {
    "release": _RESERVATIONS + " IN ('RESERVED', 'SOLD') ORDER BY 1",
    "confirm": _RESERVATIONS + " = 'RESERVED' ORDER BY 1",
    "reserve again": _RESERVATIONS + " = 'RELEASED' ORDER BY update_time DESC",
    "leave": "SELECT reservation_id::text FROM waitlist"
    " WHERE sale_id = %(sale_id)s AND state = 'WAITING' ORDER BY ticket",
}
Step = tuple[str, int, bool]
STEPS = st.tuples(
    st.sampled_from(
        ["reserve"] * 6 + ["reserve again"] * 2 + ["lose row"] * 2 + ["release"] * 4 + ["confirm", "leave", "leave"]
        + ["promote", "promote", "half promote", "half promote", "follow", "follow", "replay", "repeat"]
        + ["recalibrate", "lose gate", "reap", "reap", "bury"]
    ),
    st.integers(0, WISHES - 1),
    st.booleans(),
)  # fmt: skip


async def take_step(parts: Parts, sale: Sale, step: Step) -> None:
    kind, number, flag = step
    if kind in CHOICES:
        # Among those to whom it means something, if there are any.
        rows = await parts.rows(CHOICES[kind], sale.sale_id)
        chosen = rows[number % len(rows)][0] if rows else sale.wishes[number].reservation_id
        number = [wish.reservation_id for wish in sale.wishes].index(chosen)
    wish = sale.wishes[number]
    ids = [wish.reservation_id]
    if kind in ("reserve", "reserve again"):
        await parts.reserving.reserve([wish, sale.wishes[(number + 1) % WISHES]] if flag else [wish])
    elif kind == "lose row":
        # Half of a reserve call, as of a process that dies before its row.
        await parts.gate.reserve(sale.sale_id, [wish])
    elif kind in ("release", "leave", "confirm"):
        if kind == "release":
            _, moves = await parts.book.release(ids, revoke_sold=flag)
        elif kind == "leave":
            _, moves = await parts.waitlist.leave(ids)
        else:
            _, moves = await parts.book.confirm(ids)
        sale.moves += moves
        if flag:
            await parts.moves.follow(moves)
    elif kind == "promote":
        await parts.promoter.promote(sale.line)
    elif kind == "half promote":
        first = await parts.waitlist.first(sale.line, units=TOTAL, most=1 + number)
        if first:
            keys = [waiter.reservation_id for waiter in first]
            await parts.gate.promote(sale.sale_id, keys, overtaking_allowed=sale.overtaking_allowed)
    elif kind in ("follow", "replay") and sale.moves:
        # Any of them: another process may be the first, or one that read the outbox a while ago.
        await parts.moves.follow([sale.moves[number % len(sale.moves)]] if kind == "follow" else sale.moves[::-1])
    elif kind == "repeat":
        await parts.moves.repeat_all(0)
    elif kind == "recalibrate":
        await parts.recalibrator.recalibrate(sale.sale_id)
    elif kind == "lose gate":
        await parts.redis.delete(gate_key(sale.sale_id))
    elif kind == "reap":
        await parts.reaper.reap(sale.sale_id)
    elif kind == "bury":
        await parts.book.bury(sale.sale_id, 1, [wish])


TAKEN = "SELECT coalesce(sum(quantity), 0) FROM reservations WHERE sale_id = %(sale_id)s AND state <> 'RELEASED'"
LINE = "SELECT waiting, waiting_units, next_decision - 1 FROM sale_lines WHERE sale_id = %(sale_id)s"
COUNTED = (
    "SELECT count(*) FILTER (WHERE state = 'WAITING'), coalesce(sum(quantity) FILTER (WHERE state = 'WAITING'), 0),"
    " count(*) FILTER (WHERE state <> 'WAITING') FROM waitlist WHERE sale_id = %(sale_id)s"
)
#: Served before somebody who had joined earlier and waited then. Who has left before is in nobody's way.
OUT_OF_TURN = (
    "SELECT count(*) FROM waitlist late JOIN waitlist early USING (sale_id)"
    " WHERE sale_id = %(sale_id)s AND late.state = 'PROMOTED' AND early.ticket < late.ticket"
    " AND (early.state = 'WAITING' OR early.decision_number > late.decision_number)"
)
CONTRADICTIONS = (
    "SELECT count(*) FROM waitlist w LEFT JOIN reservations r USING (reservation_id) WHERE w.sale_id = %(sale_id)s"
    " AND (w.state = 'WAITING') <> (r.reservation_id IS NULL)"
)


async def check(parts: Parts, sale: Sale, step: Step) -> None:
    ((taken,),) = await parts.rows(TAKEN, sale.sale_id)
    assert taken <= TOTAL, step
    assert await parts.rows(LINE, sale.sale_id) == await parts.rows(COUNTED, sale.sale_id), step
    assert await parts.rows(CONTRADICTIONS, sale.sale_id) == [(0,)], step
    if not sale.overtaking_allowed:
        assert await parts.rows(OUT_OF_TURN, sale.sale_id) == [(0,)], step
    if (await parts.gate.current_epochs([sale.sale_id])) == [0]:
        return
    gate = await parts.gate.read(sale.sale_id)
    assert gate.available + gate.reserved + gate.sold == TOTAL, step
    # What SQL has promised the gate has taken, so that nobody else can be given it.
    assert gate.reserved + gate.sold >= taken, step


async def rest(parts: Parts, sale: Sale) -> None:
    """What the background does until nothing is in flight."""
    if (await parts.gate.current_epochs([sale.sale_id])) == [0]:
        await parts.recalibrator.recalibrate(sale.sale_id)
    for _ in range(4):
        await parts.moves.repeat_all(0)
        await parts.reaper.reap(sale.sale_id)
        await parts.promoter.promote(sale.line)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=10, max_size=60), overtaking_allowed=st.booleans())
async def test_the_line_keeps_its_order_and_its_units(
    parts: Parts, steps: list[Step], overtaking_allowed: bool
) -> None:
    terms = SaleTerms("Fund", 100, "EUR", TOTAL, 4, 2)
    sale = Sale((await parts.sales.create(uuid.uuid4().hex, terms)).sale_id, overtaking_allowed)
    async with parts.pool.connection() as conn:
        await conn.execute(
            "UPDATE sales SET overtaking_allowed = %s WHERE sale_id = %s", (overtaking_allowed, sale.sale_id)
        )
    await parts.sales.change_state(sale.sale_id, SaleState.OPEN)
    await parts.recalibrator.recalibrate(sale.sale_id)
    for step in steps:
        # Half of a call, or a round of the background, may find a gate that is not there.
        with contextlib.suppress(DomainError):
            await take_step(parts, sale, step)
        await check(parts, sale, step)
    await rest(parts, sale)
    await check(parts, sale, ("end", 0, False))
    assert await parts.rows("SELECT count(*) FROM gate_moves WHERE sale_id = %(sale_id)s", sale.sale_id) == [(0,)]
    book, gate = await parts.book.stock(sale.sale_id), await parts.gate.read(sale.sale_id)
    assert (book.available, book.reserved, book.sold) == (gate.available, gate.reserved, gate.sold)
    assert book.waiting == gate.waiting
    served = await parts.waitlist.first(sale.line, units=book.available, most=1)
    assert served == [], "units are there for somebody who waits"
    before = await parts.redis.hgetall(f"inventory:{{{sale.sale_id}}}:users:{gate.epoch}")
    await parts.recalibrator.recalibrate(sale.sale_id)
    assert await parts.redis.hgetall(f"inventory:{{{sale.sale_id}}}:users:{gate.epoch + 1}") == before
