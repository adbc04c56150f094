"""The operator's calls over gRPC: dead letters, parked purchases, and what a sale's oldest unsettled purchase is."""

import uuid
from collections.abc import AsyncIterator

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from purchase_svc.dead_letter import UNKNOWN_PURCHASE
from tests.support.life_rig import LifeRig, error_of, life_rig, name_of, serving
from tests.support.servers import Servers
from tests.support.waiting import eventually

_R = ErrorReason


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[LifeRig]:
    async with life_rig(servers) as made:
        yield made


async def dead(rig: LifeRig, *ids: uuid.UUID, partition: int = 3) -> None:
    """Lets a worker meet a message with ids that have no purchase, or any."""
    before = await rig.services.dead_letters()
    async with rig.services.worker():
        await rig.services.publisher.publish(partition, list(ids))

        async def is_dead() -> bool:
            return await rig.services.dead_letters() == before + 1

        await eventually(is_dead)


async def letters(rig: LifeRig, page_size: int = 0) -> pb.ListDeadLettersResponse:
    answer: pb.ListDeadLettersResponse = await rig.purchases.ListDeadLetters(
        pb.ListDeadLettersRequest(page_size=page_size)
    )
    return answer


async def replay(rig: LifeRig, most: int = 0) -> pb.ReplayDeadLettersResponse:
    answer: pb.ReplayDeadLettersResponse = await rig.purchases.ReplayDeadLetters(
        pb.ReplayDeadLettersRequest(letters_max=most)
    )
    return answer


async def test_dead_letters_are_listed_and_stay_and_are_replayed_once_they_can_be(rig: LifeRig) -> None:
    assert await letters(rig) == pb.ListDeadLettersResponse()
    await rig.services.new_sale(10)
    await rig.services.fund(["ann"])
    (wish,) = rig.services.wishes(["ann"])
    unknown = uuid.uuid4()
    await dead(rig, wish.purchase_id, partition=wish.partition)
    await dead(rig, unknown)
    for _ in range(2):
        shown = await letters(rig)
        assert shown.count == 2
        assert [list(each.purchase_ids) for each in shown.letters] == [[str(wish.purchase_id)], [str(unknown)]]
        assert [(each.partition, each.reason) for each in shown.letters] == [
            (wish.partition, UNKNOWN_PURCHASE), (3, UNKNOWN_PURCHASE),
        ]  # fmt: skip
        assert all(each.first_seen_time.seconds and each.body_bytes > 16 for each in shown.letters)
    first = await letters(rig, page_size=1)
    assert (first.count, len(first.letters)) == (2, 1)
    await rig.buy("ann")
    replayed = await replay(rig)
    assert (replayed.purchases, replayed.letters_left, list(replayed.why)) == (1, 1, [f"unknown purchase {unknown}"])
    assert [list(each.purchase_ids) for each in (await letters(rig)).letters] == [[str(unknown)]]
    async with rig.services.worker():
        await rig.until(str(wish.purchase_id), "CONFIRMED")
    await rig.services.audit()


async def test_only_so_many_letters_are_replayed_as_asked_for(rig: LifeRig) -> None:
    for _ in range(2):
        await dead(rig, uuid.uuid4())
    assert (await replay(rig, most=1)).letters_left == 1
    assert (await letters(rig)).count == 2
    for call in (letters(rig, page_size=-1), replay(rig, most=-1)):
        assert (await error_of(call)).reason == _R.ERROR_REASON_INVALID_ARGUMENT


async def test_parked_purchases_are_replayed_each_answered_by_itself(rig: LifeRig) -> None:
    await rig.services.new_sale(10)
    await rig.services.fund(["ann", "bob"])
    parked, other = [(await rig.buy(user)).purchase_id for user in ("ann", "bob")]
    await rig.services.sql(
        "UPDATE purchases SET state = 'PARKED', reason = 50, attempts = 12 WHERE purchase_id = %s", uuid.UUID(parked)
    )
    nobodys = str(uuid.uuid4())
    asked = [other, parked, "junk", nobodys, parked]

    async def reasons() -> list[int]:
        request = pb.BatchReplayParkedPurchasesRequest(purchase_ids=asked)
        outcomes = (await rig.purchases.BatchReplayParkedPurchases(request)).outcomes
        assert [outcome.purchase_id for outcome in outcomes] == asked
        return [outcome.reason for outcome in outcomes]

    not_parked, unknown, malformed = (
        _R.ERROR_REASON_PURCHASE_NOT_PARKED, _R.ERROR_REASON_PURCHASE_NOT_FOUND, _R.ERROR_REASON_INVALID_ARGUMENT,
    )  # fmt: skip
    assert await reasons() == [not_parked, 0, malformed, unknown, 0]
    assert name_of((await rig.get(parked)).state) == "SETTLING"
    assert await reasons() == [not_parked, not_parked, malformed, unknown, not_parked]
    async with rig.services.worker():
        assert await rig.finished([parked, other]) == {"CONFIRMED": 2}
    for ids in ([], [nobodys] * 251):
        error = await error_of(
            rig.purchases.BatchReplayParkedPurchases(pb.BatchReplayParkedPurchasesRequest(purchase_ids=ids))
        )
        assert error.violations[0][0] == "purchase_ids"
    await rig.services.audit()


async def test_a_summary_tells_since_when_the_oldest_is_unsettled(rig: LifeRig) -> None:
    await rig.services.new_sale(10)
    await rig.services.fund(["ann", "bob"])

    async def oldest() -> pb.SummarizeSaleResponse:
        answer: pb.SummarizeSaleResponse = await rig.purchases.SummarizeSale(
            pb.SummarizeSaleRequest(sale_id=rig.sale_id)
        )
        return answer

    assert not (await oldest()).HasField("oldest_unsettled_time")
    first, second = [await rig.buy(user) for user in ("ann", "bob")]

    async def is_told(expected: pb.Purchase | None) -> bool:
        answer = await oldest()
        if expected is None:
            return not answer.HasField("oldest_unsettled_time")
        return bool(answer.oldest_unsettled_time == expected.create_time)

    await eventually(lambda: is_told(first))
    park = "UPDATE purchases SET state = 'PARKED', reason = 50 WHERE purchase_id = %s"
    await rig.services.sql(park, uuid.UUID(first.purchase_id))
    await eventually(lambda: is_told(second))
    async with rig.services.worker():
        await rig.until(second.purchase_id, "CONFIRMED")
    await eventually(lambda: is_told(None))


async def test_letters_are_unavailable_while_the_broker_is_away(rig: LifeRig) -> None:
    async with serving(rig.services, amqp_url="amqp://guest:guest@127.0.0.1:1/") as cut_off:
        for call in (
            cut_off.ListDeadLetters(pb.ListDeadLettersRequest()),
            cut_off.ReplayDeadLetters(pb.ReplayDeadLettersRequest()),
        ):
            assert (await error_of(call)).reason == _R.ERROR_REASON_UNAVAILABLE
