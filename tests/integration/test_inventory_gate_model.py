"""The gate and the book against a plain model: whatever is done and lost in whatever order, they say what it says."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inventory_svc.eligibility import Eligibility
from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.outbox import Move
from inventory_svc.reaper import Reaper
from inventory_svc.recalibration import RecalibrationMetrics, Recalibrator
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.reserving import Reserving
from inventory_svc.sale import SaleState, SaleTerms, Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import StockGate, gate_key
from inventory_svc.waitlist_book import WaitlistBook
from mesh.errors import DomainError
from mesh.identity import purchase_id
from mesh.metrics import Metrics
from mesh.postgres import open_pool
from mesh.redis_pool import open_redis
from tests.support.servers import Servers

R = ErrorReason
TOTAL, USER_LIMIT, WISHES = 5, 3, 9


@dataclass
class Parts:
    """The service without its background tasks, so that nothing happens but what a test does."""

    redis: object
    gate: StockGate
    sales: SaleBook
    book: ReservationBook
    reserving: Reserving
    moves: GateMoves
    recalibrator: Recalibrator
    reaper: Reaper
    proofs: GrantProofs

    async def forget_gate(self, sale_id: str) -> None:
        await self.redis.delete(gate_key(sale_id))  # type: ignore[attr-defined]


@pytest_asyncio.fixture(scope="module")
async def parts(servers: Servers) -> AsyncIterator[Parts]:
    url = servers.migrated_database("inventory")
    async with open_pool(url, name="model", size=3) as pool, open_redis(servers.redis_url) as redis:
        gate, sales, book = StockGate(redis), SaleBook(pool), ReservationBook(pool)
        waitlist = WaitlistBook(pool)
        proofs = GrantProofs(gate)

        def ignore(*_: object) -> None:
            return None

        yield Parts(
            redis,
            gate,
            sales,
            book,
            Reserving(
                gate, sales, book, waitlist, proofs, Eligibility(pool), changed=ignore, joined=ignore, stale=ignore
            ),
            GateMoves(gate, sales, book, changed=ignore, stale=ignore),
            Recalibrator(gate, sales, pool, lease_ms=5_000, in_service=ignore, metrics=RecalibrationMetrics(Metrics())),
            Reaper(gate, sales, book, waitlist, grant_age_max_ms=0, changed=ignore),
            proofs,
        )


@dataclass
class Model:
    """What must be so. States: G granted by the gate but without a row, B ended by a tombstone in SQL of which the gate
    does not know, T both of them, R reserved, S sold, L released."""

    sale_id: str
    wishes: list[Wish] = field(default_factory=list)
    states: dict[int, str] = field(default_factory=dict)
    numbers: dict[int, list[int]] = field(default_factory=dict)
    gate_there: bool = True
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number in range(WISHES):
            user, request = f"u{number % 3}", f"r{number}"
            key = str(purchase_id(user, self.sale_id, request))
            self.wishes.append(Wish(key, self.sale_id, user, request, 1 + number % 2))

    def units(self, states: str, user: str | None = None) -> int:
        return sum(
            self.wishes[number].quantity
            for number, state in self.states.items()
            if state in states and user in (None, self.wishes[number].user_id)
        )

    def take(self, number: int, outcome: str) -> int:
        """The reason a wish gets; it goes on to ``outcome`` when it is granted or was without a row."""
        if not self.gate_there:
            return R.ERROR_REASON_STOCK_RECALIBRATING
        wish, state = self.wishes[number], self.states.get(number)
        if state == "T" and outcome == "R":
            self.states[number] = state = "L"
        if state == "L":
            return R.ERROR_REASON_RESERVATION_RELEASED
        if state in ("R", "S", "T"):
            return R.ERROR_REASON_UNSPECIFIED
        if state in (None, "B"):
            if self.units("GTRS", wish.user_id) + wish.quantity > USER_LIMIT:
                return R.ERROR_REASON_USER_LIMIT_REACHED
            if self.units("GTRS") + wish.quantity > TOTAL:
                return R.ERROR_REASON_SOLD_OUT
        if state == "B":
            # The gate takes it for new; only the row tells.
            self.states[number] = "L" if outcome == "R" else "T"
            return R.ERROR_REASON_RESERVATION_RELEASED if outcome == "R" else R.ERROR_REASON_UNSPECIFIED
        self.states[number] = "R" if outcome == "R" else (state or outcome)
        return R.ERROR_REASON_UNSPECIFIED

    def sell(self, number: int) -> tuple[int, list[int]]:
        state = self.states.get(number)
        if state in (None, "G"):
            return R.ERROR_REASON_RESERVATION_NOT_FOUND, []
        if state in ("L", "T", "B"):
            return R.ERROR_REASON_RESERVATION_RELEASED, []
        if state == "R":
            owned = {share for shares in self.numbers.values() for share in shares}
            free = [share for share in range(1, TOTAL + 1) if share not in owned]
            self.numbers[number] = free[: self.wishes[number].quantity]
            self.states[number] = "S"
        return R.ERROR_REASON_UNSPECIFIED, self.numbers[number]

    def give_back(self, number: int, *, revoke: bool) -> int:
        state = self.states.get(number)
        if state in (None, "G"):
            return R.ERROR_REASON_RESERVATION_NOT_FOUND
        if state in ("T", "B"):
            return R.ERROR_REASON_UNSPECIFIED
        if state == "S" and not revoke:
            return R.ERROR_REASON_RESERVATION_SOLD
        self.states[number] = "L"
        self.numbers.pop(number, None)
        return R.ERROR_REASON_UNSPECIFIED

    def forget_grants(self) -> None:
        """A rebuilt gate knows only what has a row."""
        self.states = {number: "L" if state in "BT" else state for number, state in self.states.items() if state != "G"}

    def bury(self, number: int) -> None:
        """A tombstone without the gate's knowing."""
        if self.states.get(number) in (None, "G"):
            self.states[number] = "T" if number in self.states else "B"

    def known(self, number: int) -> int:
        """A wish that something has happened to, if there is one."""
        return sorted(self.states)[number % len(self.states)] if self.states else number

    def end_grants(self) -> None:
        """The reaper's work."""
        self.states = {number: "L" if state in "GT" else state for number, state in self.states.items()}


Step = tuple[str, int, bool]
STEPS = st.tuples(
    st.sampled_from(
        ["reserve"] * 4 + ["lose insert", "lose insert", "confirm", "confirm", "release", "release"]
        + ["recalibrate", "lose gate", "reap", "bury", "repeat moves", "replay moves", "prove"]
    ),
    st.integers(0, WISHES - 1),
    st.booleans(),
)  # fmt: skip


async def take_step(parts: Parts, model: Model, step: Step) -> None:
    kind, number, flag = step
    if kind in ("confirm", "release"):
        number = model.known(number)
    wish = model.wishes[number]
    if kind == "reserve":
        done = await parts.reserving.reserve([wish, wish] if flag else [wish])
        expected = model.take(number, "R")
        assert done.reasons == [expected] * (2 if flag else 1), step
    elif kind == "lose insert":
        expected = model.take(number, "G")
        assert await grant(parts, wish) == expected, step
    elif kind == "confirm":
        confirmed, moves = await parts.book.confirm([wish.reservation_id])
        found = confirmed[wish.reservation_id]
        assert (found.reason, list(found.share_numbers)) == model.sell(number), step
        model.moves += moves
        await parts.moves.follow(moves)
    elif kind == "release":
        reasons, moves = await parts.book.release([wish.reservation_id], revoke_sold=flag)
        assert reasons[wish.reservation_id] == model.give_back(number, revoke=flag), step
        model.moves += moves
        await parts.moves.follow(moves)
    elif kind == "recalibrate":
        await parts.recalibrator.recalibrate(model.sale_id)
        model.gate_there = True
        model.forget_grants()
    elif kind == "lose gate":
        await parts.forget_gate(model.sale_id)
        model.gate_there = False
        model.forget_grants()
    elif kind == "reap" and model.gate_there:
        await parts.reaper.reap(model.sale_id)
        model.end_grants()
    elif kind == "bury":
        await parts.book.bury(model.sale_id, 1, [wish])
        model.bury(number)
    elif kind == "replay moves":
        # As another process does that read the outbox a moment ago.
        await parts.moves.follow(model.moves if flag else model.moves[::-1])
    elif kind == "repeat moves":
        await parts.moves.repeat_all(0)
    elif kind == "prove":
        await parts.proofs.flush()


async def grant(parts: Parts, wish: Wish) -> int:
    """Half of a reserve call, as of a process that dies before its INSERT."""
    try:
        return (await parts.gate.reserve(wish.sale_id, [wish])).reasons[0]
    except DomainError as error:
        return error.reason


async def check(parts: Parts, model: Model, step: Step) -> None:
    book = await parts.book.stock(model.sale_id)
    assert (book.reserved, book.sold) == (model.units("R"), model.units("S")), step
    assert book.available + book.reserved + book.sold == TOTAL, step
    if model.gate_there:
        gate = await parts.gate.read(model.sale_id)
        assert (gate.reserved, gate.sold) == (model.units("RGT"), model.units("S")), step
        assert gate.available + gate.reserved + gate.sold == TOTAL, step
    else:
        with pytest.raises(DomainError, match="recalibrating"):
            await parts.gate.read(model.sale_id)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, min_size=5, max_size=50))
async def test_gate_and_book_say_what_the_model_says(parts: Parts, steps: list[Step]) -> None:
    terms = SaleTerms("Fund", 100, "EUR", TOTAL, USER_LIMIT, 2)
    sale_id = (await parts.sales.create(uuid.uuid4().hex, terms)).sale_id
    await parts.sales.change_state(sale_id, SaleState.OPEN)
    await parts.recalibrator.recalibrate(sale_id)
    model = Model(sale_id)
    for step in steps:
        await take_step(parts, model, step)
        await check(parts, model, step)
    await parts.recalibrator.recalibrate(sale_id)
    await parts.moves.repeat_all(0)
    model.gate_there = True
    model.forget_grants()
    await check(parts, model, ("end", 0, False))
    assert await parts.book.moves_left(min_age_ms=0, after_id=0, most=1) == []


async def test_the_model_finds_a_unit_given_back_twice(parts: Parts) -> None:
    """A check of the check: a gate that is a unit off is noticed."""
    terms = SaleTerms("Fund", 100, "EUR", TOTAL, USER_LIMIT, 2)
    sale_id = (await parts.sales.create(uuid.uuid4().hex, terms)).sale_id
    await parts.sales.change_state(sale_id, SaleState.OPEN)
    await parts.recalibrator.recalibrate(sale_id)
    await parts.redis.hincrby(gate_key(sale_id), "available", 1)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        await check(parts, Model(sale_id), ("none", 0, False))
