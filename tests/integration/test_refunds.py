"""Refunds: the money once and in full, then the shares, whatever is repeated, concurrent or broken off."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.errors import DomainError
from purchase_svc.purchase import PurchaseState
from purchase_svc.refund_book import RefundBook
from purchase_svc.refunder import Refunder
from purchase_svc.settlement_rules import Answer
from purchase_svc.settlement_services import Answers, SettlementServices
from tests.support.life_rig import LifeRig, error_of, life_rig, name_of
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE
from tests.support.waiting import eventually

_R = ErrorReason
ROOT = Path(__file__).parents[2]


class KilledError(BaseException):
    """The process has ended here."""


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    async with life_rig(servers) as made:
        yield made


async def bought(rig: LifeRig, users: Sequence[str], quantity: int = 2) -> list[uuid.UUID]:
    """Purchases that are CONFIRMED; no worker is left."""
    await rig.services.new_sale(3 * len(users) * quantity)
    await rig.services.fund(users)
    ids = await rig.services.buy(users, quantity)
    async with rig.services.services() as services:
        await rig.services.settlement(services).settle(ids)
    assert await rig.services.states(ids) == {"CONFIRMED": len(ids)}
    return ids


async def ledger(rig: LifeRig, user: str) -> list[int]:
    """What was booked on a user's account, cents."""
    request = balance_pb.ListLedgerEntriesRequest(account=f"user:{user}", page_size=1_000)
    return [each.amount.amount_minor for each in (await rig.services.balance.ListLedgerEntries(request)).entries]


async def test_a_refund_pays_back_in_full_and_puts_the_shares_back_on_sale(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann"])
    async with rig.services.worker():
        purchase = await rig.confirmed("ann", 2)
        assert list(purchase.share_numbers) == [1, 2]
        refunding = await rig.refund(purchase.purchase_id, "ann")
        assert name_of(refunding.state) == "REFUNDING"
        assert list(refunding.share_numbers) == []
        refunded = await rig.until(purchase.purchase_id, "REFUNDED")
    assert list(refunded.share_numbers) == []
    assert refunded.reason == _R.ERROR_REASON_UNSPECIFIED
    assert await rig.money("ann") == (10 * PRICE, 0)
    assert await ledger(rig, "ann") == [10 * PRICE, -2 * PRICE, 2 * PRICE]
    assert await rig.services.stock() == (5, 0, 0)
    await rig.services.audit()


async def test_refunded_shares_are_sold_again_under_their_numbers(rig: LifeRig) -> None:
    await rig.services.new_sale(2)
    await rig.services.fund(["ann", "bob"])
    async with rig.services.worker():
        first = await rig.confirmed("ann", 2)
        assert (await error_of(rig.buy("bob"))).reason == _R.ERROR_REASON_SOLD_OUT
        await rig.refund(first.purchase_id)
        await rig.until(first.purchase_id, "REFUNDED")
        second = await rig.confirmed("bob", 2)
        assert list(second.share_numbers) == [1, 2]
    assert await rig.services.stock() == (0, 0, 2)
    await rig.services.audit()


async def test_a_refund_asked_for_again_and_again_books_once(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann"])
    async with rig.services.worker():
        purchase_id = (await rig.confirmed("ann")).purchase_id
        states = {name_of((await each).state) for each in [rig.refund(purchase_id) for _ in range(20)]}
        together = await asyncio.gather(*(rig.refund(purchase_id) for _ in range(50)))
        states |= {name_of(each.state) for each in together}
        assert states <= {"REFUNDING", "REFUNDED"}
        await rig.until(purchase_id, "REFUNDED")
        assert name_of((await rig.refund(purchase_id)).state) == "REFUNDED"
    assert await ledger(rig, "ann") == [10 * PRICE, -PRICE, PRICE]
    await rig.services.audit()


@pytest.mark.parametrize("state", ["RESERVED", "SETTLING", "PARKED", "FAILED", "CANCELLED"])
async def test_what_is_not_confirmed_is_not_refunded(rig: LifeRig, state: str) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann"])
    purchase_id = (await rig.buy("ann")).purchase_id
    if state == "CANCELLED":
        await rig.cancel(purchase_id)
    elif state != "RESERVED":
        await rig.services.sql(
            """UPDATE purchases SET state = %s, reason = CASE WHEN %s IN ('PARKED', 'FAILED') THEN 20 ELSE 0 END,
               final_time = CASE WHEN %s = 'FAILED' THEN now() END""",
            state, state, state,
        )  # fmt: skip
    error = await error_of(rig.refund(purchase_id))
    assert (error.reason, error.metadata) == (_R.ERROR_REASON_PURCHASE_NOT_REFUNDABLE, {"state": state})
    assert name_of((await rig.get(purchase_id)).state) == state


async def test_another_users_purchase_is_not_there_to_refund(rig: LifeRig) -> None:
    (key,) = await bought(rig, ["ann"])
    for purchase_id, user in ((str(key), "bob"), (str(uuid.uuid4()), "")):
        assert (await error_of(rig.refund(purchase_id, user))).reason == _R.ERROR_REASON_PURCHASE_NOT_FOUND
    assert (await error_of(rig.refund("junk"))).violations[0][0] == "purchase_id"
    assert await rig.services.states([key]) == {"CONFIRMED": 1}


async def test_the_window_is_counted_from_the_confirmation_by_the_databases_clock(servers: Servers) -> None:
    async with life_rig(servers, serve={"refund_window_s": 3600}) as rig:
        late, early = await bought(rig, ["ann", "bob"])
        move = "UPDATE purchases SET final_time = clock_timestamp() - interval '{}' WHERE purchase_id = %s"
        await rig.services.sql(move.format("3601 s"), late)
        await rig.services.sql(move.format("3590 s"), early)
        error = await error_of(rig.refund(str(late)))
        assert (error.reason, error.metadata) == (_R.ERROR_REASON_REFUND_WINDOW_OVER, {"window_s": "3600"})
        assert name_of((await rig.refund(str(early))).state) == "REFUNDING"
        # Who has asked in time is paid back, and may ask how it stands, however late it has become.
        await rig.services.sql(move.format("2 days"), early)
        assert name_of((await rig.refund(str(early))).state) == "REFUNDING"
        async with rig.services.worker():
            await rig.until(str(early), "REFUNDED")
        assert await rig.services.states([late]) == {"CONFIRMED": 1}
        await rig.services.audit()


def kill(owner: Any, method: str, *, after: bool) -> None:
    """Makes the owner's method raise KilledError, before or after it does its work."""
    work = getattr(owner, method)

    async def dying(*args: Any, **options: Any) -> Any:
        if after:
            await work(*args, **options)
        raise KilledError

    setattr(owner, method, dying)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["reverse_captures", "release_reservations", "finish"])
async def test_a_refund_broken_off_at_any_step_is_finished_by_the_next(rig: LifeRig, step: str, after: bool) -> None:
    users = [f"user{n}" for n in range(5)]
    ids = await bought(rig, users)
    await asyncio.gather(*(rig.refund(str(each)) for each in ids[:3]))
    async with rig.services.services() as services:
        book = RefundBook(rig.services.pool)
        kill(book if step == "finish" else services, step, after=after)
        with pytest.raises(KilledError):
            await Refunder(book, services).refund()
    async with rig.services.services() as services:
        refunder = Refunder(RefundBook(rig.services.pool), services)
        await refunder.refund()
        assert not await refunder.refund()
    assert await rig.services.states(ids) == {"REFUNDED": 3, "CONFIRMED": 2}
    assert [await ledger(rig, user) for user in users[:3]] == [[10 * PRICE, -2 * PRICE, 2 * PRICE]] * 3
    await rig.services.audit()


@pytest.mark.parametrize("point", ["refunder.reversed", "refunder.released"])
async def test_a_process_killed_between_the_steps_leaves_a_refund_to_its_successor(
    rig: LifeRig, point: str, tmp_path: Path
) -> None:
    ids = await bought(rig, ["ann", "bob"])
    await rig.refund(str(ids[0]))
    (tmp_path / point).write_text("kill")
    settings = rig.services.settings
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "purchase_svc", "settle"),
        cwd=ROOT,
        env={
            "PURCHASE_DATABASE_URL": settings.database_url,
            "SETTLEMENT_AMQP_URL": settings.amqp_url,
            "PURCHASE_INVENTORY_TARGET": settings.inventory_target,
            "PURCHASE_BALANCE_TARGET": settings.balance_target,
            "SETTLEMENT_LISTEN": "127.0.0.1:0",
            "MESH_ENVIRONMENT": "test",
            "MESH_FAILPOINTS_DIR": str(tmp_path),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            "PATH": os.environ["PATH"],
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    assert os.listdir(tmp_path) == [f"{point}.fired.{process.pid}"]
    assert await rig.services.states(ids) == {"REFUNDING": 1, "CONFIRMED": 1}
    async with rig.services.worker():
        # Others wait for the lease of a process that has died.
        await rig.until(str(ids[0]), "REFUNDED", within_s=30)
    assert await ledger(rig, "ann") == [10 * PRICE, -2 * PRICE, 2 * PRICE]
    await rig.services.audit()


async def test_refunders_at_once_pay_back_once(rig: LifeRig) -> None:
    users = [f"user{n}" for n in range(40)]
    ids = await bought(rig, users)
    await asyncio.gather(*(rig.refund(str(each)) for each in ids))
    async with rig.services.services() as services:
        refunders = [Refunder(RefundBook(rig.services.pool), services) for _ in range(6)]
        await asyncio.gather(*(each.refund() for each in refunders))
    assert await rig.services.states(ids) == {"REFUNDED": 40}
    for user in users:
        assert await ledger(rig, user) == [10 * PRICE, -2 * PRICE, 2 * PRICE]
    await rig.services.audit()


class StubbornMoney(SettlementServices):
    """A balance service that pays back none but those it is told."""

    paid: Sequence[uuid.UUID] = ()

    async def reverse_captures(self, ids: Sequence[uuid.UUID]) -> Answers:
        refused = Answer(_R.ERROR_REASON_HOLD_NOT_CAPTURED)
        done = [each for each in ids if each in self.paid]
        return dict.fromkeys(ids, refused) | await super().reverse_captures(done)


async def test_no_share_is_given_back_before_its_money_and_the_others_go_on(rig: LifeRig) -> None:
    ids = await bought(rig, ["ann", "bob", "cid"])
    await asyncio.gather(*(rig.refund(str(each)) for each in ids))
    async with rig.services.services(StubbornMoney) as services:
        refunder = Refunder(RefundBook(rig.services.pool), services)
        with pytest.raises(DomainError):
            await refunder.refund()
        sold = {each.state for each in (await rig.services.reservations()).values()}
        assert sold == {inventory_pb.RESERVATION_STATE_SOLD}
        services.paid = ids[1:]
        assert await refunder.refund()
    assert await rig.services.states(ids) == {"REFUNDING": 1, "REFUNDED": 2}
    reservations = await rig.services.reservations()
    assert reservations[ids[0]].state == inventory_pb.RESERVATION_STATE_SOLD
    assert await rig.money("ann") == (8 * PRICE, 0)
    async with rig.services.worker():
        await rig.until(str(ids[0]), "REFUNDED")
    await rig.services.audit()


@pytest.mark.parametrize("away", ["balance", "inventory"])
async def test_a_refund_waits_for_a_service_that_is_away(rig: LifeRig, away: str) -> None:
    (key,) = await bought(rig, ["ann"])
    service = getattr(rig.services, f"{away}_service")
    await service.stop()
    assert name_of((await rig.refund(str(key))).state) == "REFUNDING"
    async with rig.services.services() as services:
        with pytest.raises(DomainError):
            await Refunder(RefundBook(rig.services.pool), services).refund()
    assert await rig.services.states([key]) == {"REFUNDING": 1}
    await service.start()
    async with rig.services.worker():
        await rig.until(str(key), "REFUNDED")
    await rig.services.audit()


async def test_a_worker_with_an_old_batch_changes_nothing_about_a_refund(rig: LifeRig) -> None:
    ids = await bought(rig, ["ann", "bob"])
    await rig.refund(str(ids[0]))
    async with rig.services.services() as services:
        # What a worker still sends that had claimed the purchase before another confirmed it.
        reversed_answers = await services.reverse_captures([ids[0]])
        assert reversed_answers[ids[0]].done
        late = await services.capture_holds([ids[0]])
        assert late[ids[0]].reason == _R.ERROR_REASON_HOLD_REVERSED
        await rig.services.settlement(services).settle(ids)
        assert await rig.services.states(ids) == {"REFUNDING": 1, "CONFIRMED": 1}
        await Refunder(RefundBook(rig.services.pool), services).refund()
        await rig.services.settlement(services).settle(ids)
    assert await rig.services.states(ids) == {"REFUNDED": 1, "CONFIRMED": 1}
    await rig.services.audit()


async def test_a_refund_is_watched_to_its_end(rig: LifeRig) -> None:
    (key,) = await bought(rig, ["ann"])
    await rig.refund(str(key))
    stream = rig.purchases.WatchPurchase(pb.WatchPurchaseRequest(purchase_id=str(key)), timeout=20)
    seen = stream.__aiter__()
    assert name_of((await anext(seen)).purchase.state) == "REFUNDING"
    async with rig.services.worker():
        assert [name_of(each.purchase.state) async for each in seen] == ["REFUNDED"]
    (row,) = (await rig.services.purchases.get_many([key])).values()
    assert (row.state, row.share_numbers) == (PurchaseState.REFUNDED, ())


async def test_what_is_refunded_while_thousands_settle_is_paid_back_all_the_same(rig: LifeRig) -> None:
    await rig.services.new_sale(600)
    users = [f"user{n}" for n in range(300)]
    await rig.services.fund(users)
    async with rig.services.worker():
        ids = [each.purchase_id for each in await rig.buy_all(users)]
        refunded: set[str] = set()

        async def refund_some() -> bool:
            for each in ids[:100]:
                if each not in refunded and name_of((await rig.get(each)).state) == "CONFIRMED":
                    await rig.refund(each)
                    refunded.add(each)
            return len(refunded) == 100

        await eventually(refund_some, within_s=40)
        assert await rig.finished(ids, within_s=40) == {"CONFIRMED": 200, "REFUNDED": 100}
    await rig.services.audit()
    assert await rig.services.stock() == (400, 0, 200)
