"""Receipts: every kind of ending is told in full, from what the three services know."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from purchase_svc import words
from purchase_svc.purchase import PurchaseState
from tests.support.life_rig import LifeRig, error_of, life_rig, name_of
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE
from tests.support.waiting import eventually

_R = ErrorReason
_S = PurchaseState


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    async with life_rig(servers) as made:
        yield made


def told(receipt: pb.GetReceiptResponse) -> tuple[list[str], str, str]:
    """The states it went through; the reservation's and the hold's states, "" where there is none."""
    times = [step.time.ToDatetime() for step in receipt.steps]
    assert times == sorted(times)
    assert all(step.words == words.of_step(PurchaseState(name_of(step.state))) for step in receipt.steps)
    return (
        [name_of(step.state) for step in receipt.steps],
        receipt.reservation.state if receipt.HasField("reservation") else "",
        receipt.hold.state if receipt.HasField("hold") else "",
    )


async def test_a_purchase_is_accounted_for_from_its_reservation_to_its_refund(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann"])
    purchase_id = (await rig.buy("ann", 2)).purchase_id
    receipt = await rig.receipt(purchase_id, "ann")
    assert told(receipt) == (["RESERVED"], "RESERVED", "")
    assert receipt.words == words.of_state(_S.RESERVED, 0)
    assert receipt.reservation.quantity == 2
    async with rig.services.worker():
        await rig.until(purchase_id, "CONFIRMED")
        receipt = await rig.receipt(purchase_id, "ann")
        assert told(receipt) == (["RESERVED", "SETTLING", "CONFIRMED"], "SOLD", "CAPTURED")
        assert list(receipt.purchase.share_numbers) == [1, 2]
        assert receipt.hold.amount.amount_minor == 2 * PRICE
        assert receipt.hold.create_time.ToDatetime() <= receipt.hold.end_time.ToDatetime()
        assert receipt.steps[0].time == receipt.purchase.create_time
        await rig.refund(purchase_id)
        await rig.until(purchase_id, "REFUNDED")
    receipt = await rig.receipt(purchase_id, "ann")
    steps = ["RESERVED", "SETTLING", "CONFIRMED", "REFUNDING", "REFUNDED"]
    assert told(receipt) == (steps, "RELEASED", "REVERSED")
    assert receipt.words == words.of_state(_S.REFUNDED, 0)


async def test_who_could_not_pay_is_told_so(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["poor"], 1)
    async with rig.services.worker():
        poor, stranger = (await rig.buy("poor")).purchase_id, (await rig.buy("stranger")).purchase_id
        await rig.until(poor, "FAILED")
        await rig.until(stranger, "FAILED")
    reasons = {poor: _R.ERROR_REASON_INSUFFICIENT_FUNDS, stranger: _R.ERROR_REASON_ACCOUNT_NOT_FOUND}
    for purchase_id, reason in reasons.items():
        receipt = await rig.receipt(purchase_id)
        assert told(receipt) == (["RESERVED", "SETTLING", "FAILED"], "RELEASED", "REFUSED")
        assert receipt.purchase.reason == reason
        assert receipt.words == f"{words.of_reason(reason)} {words.of_state(_S.FAILED, 0)}"
    assert (await rig.receipt(poor)).words.startswith("There was not enough money on the account.")


async def test_a_cancelled_purchase_shows_that_nothing_was_held(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    purchase_id = (await rig.buy("ann")).purchase_id
    await rig.cancel(purchase_id)
    receipt = await rig.receipt(purchase_id)
    assert told(receipt) == (["RESERVED", "CANCELLED"], "RELEASED", "")
    assert receipt.words == words.of_state(_S.CANCELLED, 0)


async def test_a_parked_purchase_shows_when_and_why(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    await rig.services.fund(["ann"])
    purchase_id = (await rig.buy("ann")).purchase_id
    key = uuid.UUID(purchase_id)
    await rig.services.balance_service.stop()
    async with rig.services.services() as services:
        await rig.services.settlement(services, attempts_max=1).settle([key])
    await rig.services.balance_service.start()

    async def balance_is_back() -> bool:
        try:
            await rig.receipt(purchase_id)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(balance_is_back)
    receipt = await rig.receipt(purchase_id)
    assert told(receipt) == (["RESERVED", "SETTLING", "PARKED"], "RESERVED", "")
    assert receipt.words == words.of_state(_S.PARKED, receipt.purchase.reason)
    async with rig.services.worker():
        answer = await rig.purchases.BatchReplayParkedPurchases(
            pb.BatchReplayParkedPurchasesRequest(purchase_ids=[purchase_id])
        )
        assert [outcome.reason for outcome in answer.outcomes] == [0]
        await rig.until(purchase_id, "CONFIRMED")
    assert told(await rig.receipt(purchase_id)) == (["RESERVED", "SETTLING", "PARKED", "CONFIRMED"], "SOLD", "CAPTURED")


async def test_what_its_buyer_left_behind_was_over_when_it_was_recorded(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    (wish,) = rig.services.wishes(["ann"])
    await rig.services.reserve([wish])
    async with rig.services.worker():

        async def cleaned_up() -> bool:
            return await rig.services.sql("SELECT state FROM purchases WHERE NOT cleanup_pending") == [("FAILED",)]

        await eventually(cleaned_up)
    receipt = await rig.receipt(str(wish.purchase_id))
    assert told(receipt) == (["FAILED"], "RELEASED", "")
    assert receipt.words == words.of_state(_S.FAILED, _R.ERROR_REASON_ABANDONED)


async def test_a_receipt_is_its_buyers_only(rig: LifeRig) -> None:
    await rig.services.new_sale(5)
    purchase_id = (await rig.buy("ann")).purchase_id
    for wanted, user in ((purchase_id, "bob"), (str(uuid.uuid4()), "")):
        assert (await error_of(rig.receipt(wanted, user))).reason == _R.ERROR_REASON_PURCHASE_NOT_FOUND
    assert (await error_of(rig.receipt("junk"))).violations[0][0] == "purchase_id"


@pytest.mark.parametrize("away", ["balance", "inventory"])
async def test_a_receipt_with_a_part_missing_is_not_given(rig: LifeRig, away: str) -> None:
    await rig.services.new_sale(5)
    purchase_id = (await rig.buy("ann")).purchase_id
    service = getattr(rig.services, f"{away}_service")
    await service.stop()
    assert (await error_of(rig.receipt(purchase_id))).reason == _R.ERROR_REASON_UNAVAILABLE
    await service.start()


async def test_receipts_asked_for_at_once_are_each_ones_own(rig: LifeRig) -> None:
    await rig.services.new_sale(200)
    users = [f"user{n}" for n in range(150)]
    await rig.services.fund(users[::2])
    async with rig.services.worker():
        ids = [each.purchase_id for each in await rig.buy_all(users)]
        await rig.finished(ids)
    receipts = await asyncio.gather(*(rig.receipt(each, user) for each, user in zip(ids, users, strict=True)))
    for number, receipt in enumerate(receipts):
        assert (receipt.purchase.purchase_id, receipt.purchase.user_id) == (ids[number], users[number])
        assert told(receipt)[1:] == (("SOLD", "CAPTURED") if number % 2 == 0 else ("RELEASED", "REFUSED"))


def test_there_are_plain_words_for_every_state_and_every_reason() -> None:
    sentences = [words.of_reason(number) for number in ErrorReason.values() if number]
    sentences += [of(state) for state in PurchaseState for of in (words.of_step, lambda each: words.of_state(each, 0))]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert "_" not in sentence
    assert words.of_reason(0) == ""
    assert words.of_non_win(_S.CANCELLED, 0) == words.of_state(_S.CANCELLED, 0)
    assert words.of_non_win(_S.FAILED, _R.ERROR_REASON_SALE_CLOSED) == words.of_reason(_R.ERROR_REASON_SALE_CLOSED)
