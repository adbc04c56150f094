"""A worker that dies between any two steps, or works at the same time as another: the end is right all the same."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from purchase_svc.purchase import PurchaseState
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_services import SettlementServices
from tests.support.servers import Servers
from tests.support.settlement_rig import SettlementRig, settlement_rig
from tests.support.waiting import eventually

NO_FUNDS = f"FAILED {ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS}"
EXPIRED = f"FAILED {ErrorReason.ERROR_REASON_HOLD_EXPIRED}"


class KilledError(BaseException):
    """The worker's process has ended here."""


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        yield made


def kill(owner: Any, method: str, *, after: bool) -> None:
    """Makes the owner's method raise KilledError, before or after it does its work."""
    work: Callable[..., Awaitable[Any]] = getattr(owner, method)

    async def dying(*args: Any, **options: Any) -> Any:
        if after:
            await work(*args, **options)
        raise KilledError

    setattr(owner, method, dying)


async def rich_and_poor(rig: SettlementRig, each: int = 5) -> list[Any]:
    await rig.new_sale(200)
    await rig.fund(f"rich{n}" for n in range(each))
    await rig.fund([f"poor{n}" for n in range(each)], 1)
    return await rig.buy([f"{kind}{n}" for kind in ("rich", "poor") for n in range(each)], quantity=2)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "step", ["claim", "place_holds", "release_reservations", "confirm_reservations", "capture_holds", "finish"]
)
async def test_a_batch_broken_off_at_any_step_is_finished_by_redelivery(
    rig: SettlementRig, step: str, after: bool
) -> None:
    ids = await rich_and_poor(rig)
    async with rig.services() as services:
        killed = rig.settlement(services)
        killed._book = SettlementBook(rig.pool)
        kill(killed._book if step in ("claim", "finish") else services, step, after=after)
        with pytest.raises(KilledError):
            await killed.settle(ids)
    async with rig.services() as services:
        await rig.settlement(services).settle(ids)
    assert await rig.states(ids) == {"CONFIRMED": 5, NO_FUNDS: 5}
    await rig.audit()


async def test_workers_killed_again_and_again_lose_and_repeat_nothing(rig: SettlementRig) -> None:
    await rig.new_sale(1_000)
    rich = [f"rich{n}" for n in range(500)]
    poor = [f"poor{n}" for n in range(100)]
    await rig.fund(rich)
    await rig.fund(poor, 1)
    ids = await rig.buy(rich) + await rig.buy(poor)
    await rig.publish(ids, per_message=20)
    for _ in range(4):
        async with rig.worker(grace_s=0):
            await asyncio.sleep(random.uniform(0.05, 0.4))
    async with rig.worker():
        assert await rig.finished(ids) == {"CONFIRMED": 500, NO_FUNDS: 100}
    await rig.audit()


async def test_overlapping_workers_agree(rig: SettlementRig) -> None:
    ids = await rich_and_poor(rig, 40)
    async with rig.services() as services:
        settlement = rig.settlement(services)
        batches = [random.sample(ids, 60) for _ in range(6)]
        await asyncio.gather(*(settlement.settle(batch) for batch in [*batches, ids]))
    assert await rig.states(ids) == {"CONFIRMED": 40, NO_FUNDS: 40}
    await rig.audit()


async def test_a_deposit_between_two_workers_changes_no_refusal(rig: SettlementRig) -> None:
    await rig.new_sale(10)
    await rig.fund(["poor"], 1)
    ids = await rig.buy(["poor"])
    async with rig.services() as services:
        kill(services, "release_reservations", after=False)
        with pytest.raises(KilledError):
            await rig.settlement(services).settle(ids)
    await rig.fund(["poor"])
    async with rig.services() as services:
        await rig.settlement(services).settle(ids)
    assert await rig.states(ids) == {NO_FUNDS: 1}
    await rig.audit()


class LateCapture(SettlementServices):
    """Captures only when every hold has lapsed."""

    rig: SettlementRig

    async def capture_holds(self, ids: Sequence[Any]) -> Any:
        async def lapsed() -> bool:
            holds = await self.rig.holds()
            return all(holds[each].state == balance_pb.HOLD_STATE_EXPIRED for each in ids)

        await eventually(lapsed)
        return await super().capture_holds(ids)


async def test_a_hold_that_lapses_before_capture_takes_the_shares_back(servers: Servers) -> None:
    async with settlement_rig(servers, hold_ttl_s=0.3) as rig:
        await rig.new_sale(10)
        await rig.fund(["alice", "bob"])
        ids = await rig.buy(["alice", "bob"], quantity=3)
        async with rig.services(LateCapture) as services:
            services.rig = rig
            await rig.settlement(services).settle(ids)
        assert await rig.states(ids) == {EXPIRED: 2}
        assert await rig.stock() == (10, 0, 0)
        await rig.audit()


async def test_a_worker_that_dies_after_the_shares_leaves_none_behind_when_the_hold_lapses(servers: Servers) -> None:
    async with settlement_rig(servers, hold_ttl_s=0.3) as rig:
        await rig.new_sale(10)
        await rig.fund(["alice"])
        ids = await rig.buy(["alice"], quantity=3)
        async with rig.services() as services:
            kill(services, "confirm_reservations", after=True)
            with pytest.raises(KilledError):
                await rig.settlement(services).settle(ids)
        assert await rig.stock() == (7, 0, 3)

        async def lapsed() -> bool:
            return all(hold.state == balance_pb.HOLD_STATE_EXPIRED for hold in (await rig.holds()).values())

        await eventually(lapsed)
        async with rig.services() as services:
            await rig.settlement(services).settle(ids)
        assert await rig.states(ids) == {EXPIRED: 1}
        assert await rig.stock() == (10, 0, 0)
        await rig.audit()


async def test_a_cancel_wins_before_the_claim_or_not_at_all(rig: SettlementRig) -> None:
    await rig.new_sale(1_000)
    users = [f"user{n}" for n in range(300)]
    await rig.fund(users)
    ids = await rig.buy(users)

    async def cancel(purchase_id: Any) -> bool:
        await asyncio.sleep(random.uniform(0, 0.3))
        try:
            return (await rig.purchases.cancel(purchase_id, "")).state is PurchaseState.CANCELLED
        except DomainError as error:
            if error.reason != ErrorReason.ERROR_REASON_PURCHASE_NOT_CANCELLABLE:
                raise
            return False

    async with rig.worker():
        publishing = asyncio.create_task(rig.publish(ids, per_message=3))
        cancelled = await asyncio.gather(*map(cancel, ids))
        await publishing
        states = await rig.finished(ids)
    assert states.get("CANCELLED", 0) == sum(cancelled)
    assert set(states) <= {"CANCELLED", "CONFIRMED"}
    assert sum(states.values()) == 300
    await rig.audit()


async def test_purchases_that_crash_every_worker_are_parked(rig: SettlementRig) -> None:
    ids = await rich_and_poor(rig, 2)
    async with rig.services() as services:
        for _ in range(3):
            await rig.book.claim(ids)
        await rig.settlement(services, attempts_max=3).settle(ids)
    assert await rig.states(ids) == {f"PARKED {ErrorReason.ERROR_REASON_INTERNAL}": 4}
