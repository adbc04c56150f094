"""Inventory under concurrency: nothing is sold twice, nothing is lost, whoever races with whom."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from tests.support.inventory_rig import AGAIN, OK, SOLD_OUT, InventoryRig, inventory_rig, item, second_rig
from tests.support.servers import Servers
from tests.support.waiting import eventually


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as opened:
        yield opened


async def agrees(rig: InventoryRig, sale_id: str) -> None:
    """When nothing is in flight, Redis equals SQL."""

    async def equal() -> bool:
        return await rig.stock(sale_id) == await rig.stock(sale_id, book=True)

    await eventually(equal)


async def test_two_batches_for_the_last_share_have_one_winner(rig: InventoryRig) -> None:
    for _ in range(20):
        sale_id = await rig.open_sale(1)
        answers = await asyncio.gather(
            rig.reserve([item(sale_id, f"a{number}") for number in range(10)]),
            rig.reserve([item(sale_id, f"b{number}") for number in range(10)]),
        )
        assert Counter(answers[0] + answers[1]) == {OK: 1, SOLD_OUT: 19}
        assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 1, 0)


async def test_a_user_gets_no_more_than_the_limit_however_many_ask_at_once(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(100, per_user=3)
    calls = [rig.reserve([item(sale_id, "greedy", f"r{call}-{n}") for n in range(5)]) for call in range(8)]
    reasons = Counter(reason for answer in await asyncio.gather(*calls) for reason in answer)
    assert reasons == {OK: 3, ErrorReason.ERROR_REASON_USER_LIMIT_REACHED: 37}


async def test_the_same_items_sent_at_once_in_any_order_take_their_units_once(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(100)
    wishes = [item(sale_id, f"u{number}") for number in range(50)]
    orders = [random.sample(wishes, 50) for _ in range(8)]
    assert await asyncio.gather(*map(rig.reserve, orders)) == [[OK] * 50] * 8
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (50, 50, 0)


async def test_confirms_and_revocations_at_once_give_every_number_at_most_one_owner(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(60)
    wishes = [item(sale_id, f"u{number}", quantity=2) for number in range(30)]
    assert await rig.reserve(wishes) == [OK] * 30
    ids = [wish.reservation_id for wish in wishes]

    async def confirm(seed: int) -> None:
        for reservation_id in random.Random(seed).sample(ids, 30):
            await rig.confirm([reservation_id])

    async def revoke() -> None:
        for reservation_id in ids[:10]:
            await rig.release([reservation_id], revoke_sold=True)

    await asyncio.gather(confirm(1), confirm(2), confirm(3), revoke())
    owned = await rig.sql(
        "SELECT share_number FROM share_numbers WHERE sale_id = %s AND reservation_id IS NOT NULL", sale_id
    )
    assert len(owned) == 40
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (20, 0, 40)
    again = [item(sale_id, f"v{number}", quantity=2) for number in range(10)]
    assert await rig.reserve(again) == [OK] * 10
    numbers = sorted(number for _, got in await rig.confirm([w.reservation_id for w in again]) for number in got)
    assert sorted(numbers + [number for (number,) in owned]) == list(range(1, 61))


async def storm(rig: InventoryRig, sale_id: str, seed: int, rounds: int) -> tuple[int, set[str]]:
    """Buys, confirms and gives back at random; how many answers it got, and what it still holds."""
    rng = random.Random(seed)
    held: set[str] = set()
    answers = 0
    for round_number in range(rounds):
        wishes = [item(sale_id, f"s{seed}-{round_number}-{n}", quantity=rng.randint(1, 2)) for n in range(40)]
        reasons = await rig.reserve(wishes)
        answers += len(reasons)
        held |= {w.reservation_id for w, reason in zip(wishes, reasons, strict=True) if reason == OK}
        assert set(reasons) <= {OK, SOLD_OUT, *AGAIN}
        chosen = rng.sample(sorted(held), min(len(held), 15))
        if chosen:
            await rig.confirm(chosen[:7])
        given_back = chosen[4:]
        if given_back:
            assert await rig.release(given_back, revoke_sold=True) == [OK] * len(given_back)
        held -= set(given_back)
    return answers, held


async def test_recalibration_in_the_middle_of_a_storm_loses_and_invents_nothing(rig: InventoryRig) -> None:
    total = 400
    sale_id = await rig.open_sale(total)
    over = asyncio.Event()
    readings: list[tuple[int, int, int]] = []

    async def recalibrate() -> int:
        times = 0
        while not over.is_set():
            await rig.recalibrate(sale_id)
            times += 1
            await asyncio.sleep(0.02)
        return times

    async def read() -> None:
        while not over.is_set():
            try:
                readings.append(await rig.stock(sale_id))
            except grpc.aio.AioRpcError as error:
                # A gate that is being rebuilt refuses to be read.
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise

    watchers = asyncio.gather(recalibrate(), read())
    outcomes = await asyncio.gather(*(storm(rig, sale_id, seed, 12) for seed in range(4)))
    over.set()
    times, _ = await watchers
    assert times >= 3
    assert readings
    # A call whose INSERT the fence refused holds nothing in SQL, so SQL has exactly what was acknowledged and kept.
    rows = await rig.sql(
        "SELECT reservation_id::text FROM reservations WHERE sale_id = %s AND state <> 'RELEASED'", sale_id
    )
    assert {key for (key,) in rows} == set().union(*(held for _, held in outcomes))
    await agrees(rig, sale_id)


async def test_two_processes_on_the_same_servers_sell_exactly_what_there_is(rig: InventoryRig) -> None:
    total = 2_000
    sale_id = await rig.open_sale(total)
    async with second_rig(rig.settings) as other:

        async def buy(process: InventoryRig, first: int) -> list[int]:
            reasons = []
            for start in range(first, 3_000, 600):
                wishes = [item(sale_id, f"u{number}") for number in range(start, start + 100)]
                reasons += await process.reserve_until_decided(wishes)
            return reasons

        async def disturb() -> None:
            for process in (rig, other) * 4:
                await process.recalibrate(sale_id)

        disturbing = asyncio.create_task(disturb())
        answers = await asyncio.gather(
            *(buy(rig, first) for first in (0, 200, 400)), *(buy(other, first) for first in (100, 300, 500))
        )
        await disturbing
        assert Counter(reason for part in answers for reason in part) == {OK: total, SOLD_OUT: 1_000}
        await agrees(rig, sale_id)
        await agrees(other, sale_id)
        ids = [
            row[0] for row in await rig.sql("SELECT reservation_id::text FROM reservations WHERE sale_id = %s", sale_id)
        ]
        halves = await asyncio.gather(
            *(process.confirm(ids[start : start + 500]) for start in range(0, total, 500) for process in (rig, other))
        )
        numbers = {tuple(got) for half in halves for _, got in half}
        assert sorted(number for (number,) in numbers) == list(range(1, total + 1))
        assert await rig.stock(sale_id) == await other.stock(sale_id, book=True) == (0, 0, total)
