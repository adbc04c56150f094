"""The line under concurrency: exactly what there is is sold, in the order of the line, whoever races with whom."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from tests.support.inventory_rig import AGAIN, OK, SOLD_OUT, InventoryRig, inventory_rig, item, second_rig
from tests.support.servers import Servers
from tests.support.waiting import eventually
from tests.support.waitlist_rig import (
    WAITS,
    ask,
    at_rest,
    entries,
    ids_of,
    joining,
    leave,
    places,
    sold_out_sale,
    states,
    waiting,
)

RELEASED = ErrorReason.ERROR_REASON_RESERVATION_RELEASED
PROMOTED = ErrorReason.ERROR_REASON_RESERVATION_PROMOTED
STATE = pb.WaitlistState


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers, promoter_period_ms=200) as opened:
        yield opened


async def ask_until_decided(rig: InventoryRig, wishes: Sequence[pb.ReserveItem]) -> list[int | str]:
    """As a caller does it: repeats what may be repeated until each wish has a final answer."""
    answers = await ask(rig, wishes)

    async def decided() -> bool:
        again = [place for place, answer in enumerate(answers) if answer in AGAIN]
        if again:
            for place, answer in zip(again, await ask(rig, [wishes[place] for place in again]), strict=True):
                answers[place] = answer
        return not any(answer in AGAIN for answer in answers)

    await eventually(decided, within_s=40)
    return answers


async def in_turn(rig: InventoryRig, sale_id: str) -> list[pb.WaitlistEntry]:
    """Checks that those promoted were so in the order of their tickets, and that nobody who waits was passed over."""
    found = await entries(rig, sale_id)
    promoted = [entry for entry in found if entry.state == STATE.WAITLIST_STATE_PROMOTED]
    tickets = [entry.ticket for entry in sorted(promoted, key=lambda entry: entry.decision_number)]
    assert tickets == sorted(tickets)
    waits = [entry.ticket for entry in found if entry.state == STATE.WAITLIST_STATE_WAITING]
    assert not waits or not tickets or max(tickets) < min(waits)
    assert [entry.ticket for entry in found] == list(range(1, len(found) + 1))
    return promoted


async def test_many_buyers_and_failing_purchases_sell_exactly_what_there_is_in_order(rig: InventoryRig) -> None:
    total, buyers = 300, 1_500
    sale_id = await rig.open_sale(total)
    async with second_rig(rig.settings) as other:
        processes = (rig, other)
        finished: set[str] = set()

        async def buy(process: InventoryRig, first: int) -> list[int | str]:
            answers = []
            for start in range(first, buyers, 250):
                answers += await ask_until_decided(
                    process, [joining(sale_id, f"u{number}") for number in range(start, start + 50)]
                )
            return answers

        async def settle(process: InventoryRig, seed: int, over: asyncio.Event) -> None:
            """Every third purchase fails, whoever has it; the others are sold."""
            rng = random.Random(seed)
            while not over.is_set():
                query = "SELECT reservation_id::text FROM reservations WHERE sale_id = %s AND state = 'RESERVED'"
                reserved = sorted(key for (key,) in await rig.sql(query, sale_id))
                for key in rng.sample(reserved, min(len(reserved), 40)):
                    finished.add(key)
                sample = [key for key in reserved if key in finished]
                failing = [key for key in sample if int(key[-4:], 16) % 3 == 0]
                sold = [key for key in sample if int(key[-4:], 16) % 3]
                if sold:
                    assert {reason for reason, _ in await process.confirm(sold)} <= {OK}
                if failing:
                    assert set(await process.release(failing)) <= {OK}
                await asyncio.sleep(0.01)

        async def recalibrate() -> None:
            for process in processes * 3:
                await process.recalibrate(sale_id)
                await asyncio.sleep(0.1)

        over = asyncio.Event()
        settling = [asyncio.create_task(settle(process, seed, over)) for seed, process in enumerate(processes * 2)]
        disturbing = asyncio.create_task(recalibrate())
        answers = await asyncio.gather(*(buy(processes[number % 2], number * 50) for number in range(5)))
        await disturbing

        async def all_sold() -> bool:
            return await rig.stock(sale_id, book=True) == (0, 0, total)

        await eventually(all_sold, within_s=60)
        over.set()
        await asyncio.gather(*settling)
        kinds = Counter("waits" if isinstance(answer, str) else answer for part in answers for answer in part)
        assert set(kinds) == {OK, WAITS}
        assert kinds.total() == buyers
        for process in processes:
            (stock, left) = await at_rest(process, sale_id)
            assert stock == (0, 0, total)
        promoted = await in_turn(rig, sale_id)
        # Who waited is promoted or still waits: nobody has got lost, and newcomers get nothing.
        assert kinds[WAITS] == len(promoted) + left
        assert await rig.reserve([item(sale_id, "new")]) == [SOLD_OUT]
        numbers = await rig.sql("SELECT share_number FROM share_numbers WHERE sale_id = %s ORDER BY 1", sale_id)
        assert [number for (number,) in numbers] == list(range(1, total + 1))


async def test_leaving_races_with_promotion_and_one_of_them_wins(rig: InventoryRig) -> None:
    async with second_rig(rig.settings) as other:
        sale_id, holders = await sold_out_sale(rig, 60)
        line = [joining(sale_id, f"u{number}") for number in range(120)]
        await ask(rig, line)
        ids = ids_of(line)
        reasons: dict[str, int] = {}

        async def go(process: InventoryRig, keys: list[str]) -> None:
            for start in range(0, len(keys), 5):
                part = keys[start : start + 5]
                reasons.update(zip(part, await leave(process, part), strict=True))

        async def release(process: InventoryRig, keys: list[str]) -> None:
            for start in range(0, len(keys), 3):
                assert set(await process.release(keys[start : start + 3])) == {OK}

        await asyncio.gather(
            go(rig, ids[:80:2]), go(other, ids[20:80:3]), release(rig, holders[:30]), release(other, holders[30:])
        )
        assert set(reasons.values()) <= {OK, PROMOTED}
        assert await at_rest(rig, sale_id) == await at_rest(other, sale_id)
        found = dict(zip(ids, await states(rig, ids), strict=True))
        for key, reason in reasons.items():
            assert found[key] == ("RELEASED" if reason == OK else "RESERVED")
        assert Counter(found.values())["RESERVED"] == 60
        assert len(await in_turn(rig, sale_id)) == 60


async def test_large_and_small_requests_are_served_strictly_in_order(rig: InventoryRig) -> None:
    total = 40
    sale_id, holders = await sold_out_sale(rig, total, per_user=9)
    rng = random.Random(7)
    line = [joining(sale_id, f"u{number}", quantity=rng.randint(1, 9)) for number in range(40)]
    await asyncio.gather(*(ask(rig, line[start : start + 5]) for start in range(0, 40, 5)))
    order = await entries(rig, sale_id)
    await asyncio.gather(*(rig.release(holders[start : start + 2]) for start in range(0, total, 2)))

    expected, units = [], total
    for entry in order:
        if entry.quantity > units:
            break
        expected.append(entry.reservation_id)
        units -= entry.quantity

    async def served() -> bool:
        return len(await in_turn(rig, sale_id)) == len(expected)

    await eventually(served)
    assert ids_of(await in_turn(rig, sale_id)) == expected
    assert (await at_rest(rig, sale_id))[0] == (units, total - units, 0)


async def fill_line(rig: InventoryRig, sale_id: str, count: int) -> None:
    """Puts so many in line by SQL, as if they had joined."""
    await rig.sql(
        "INSERT INTO waitlist (reservation_id, sale_id, user_id, request_id, quantity, ticket)"
        " SELECT gen_random_uuid(), %s, 'user' || n, 'r', 1, n FROM generate_series(1, %s) n",
        sale_id,
        count,
    )
    await rig.sql(
        "INSERT INTO waitlist_blocks SELECT sale_id, ticket / 256, count(*), sum(quantity) FROM waitlist"
        " WHERE sale_id = %s GROUP BY 1, 2",
        sale_id,
    )
    await rig.sql(
        "UPDATE sale_lines SET next_ticket = %s + 1, waiting = %s, waiting_units = %s WHERE sale_id = %s",
        count,
        count,
        count,
        sale_id,
    )
    await rig.recalibrate(sale_id)


async def test_a_place_among_a_hundred_thousand_is_read_at_little_cost(rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 10)
    await fill_line(rig, sale_id, 100_000)
    assert await waiting(rig, sale_id) == 100_000
    rows = await rig.sql("SELECT reservation_id::text FROM waitlist WHERE sale_id = %s ORDER BY ticket", sale_id)
    ids = [key for (key,) in rows]
    rng = random.Random(1)
    took: list[float] = []
    for _ in range(60):
        place = rng.randrange(100_000)
        began = time.perf_counter()
        assert await places(rig, [ids[place]]) == [(place + 1, place)]
        took.append(time.perf_counter() - began)
    asked = rng.sample(range(100_000), 1_000)
    began = time.perf_counter()
    assert await places(rig, [ids[place] for place in asked]) == [(place + 1, place) for place in asked]
    batch_s = time.perf_counter() - began
    began = time.perf_counter()
    assert await rig.release(holders[:5]) == [OK] * 5
    release_s = time.perf_counter() - began
    assert await states(rig, ids[:6]) == ["RESERVED"] * 5 + ["WAITING"]
    assert await places(rig, [ids[5], ids[99_999]]) == [(1, 0), (99_995, 99_994)]
    median_s = sorted(took)[len(took) // 2]
    # The server takes 0.4 ms, 30 ms and 5 ms of it; the machine may be busy.
    assert median_s < 0.05, median_s
    assert batch_s < 1.0, batch_s
    assert release_s < 0.5, release_s


async def test_a_long_line_of_a_closed_sale_ends_part_by_part(rig: InventoryRig) -> None:
    sale_id, _ = await sold_out_sale(rig, 1)
    await fill_line(rig, sale_id, 5_000)
    await rig.inventory.CloseSale(pb.CloseSaleRequest(sale_id=sale_id))

    async def over() -> bool:
        return await waiting(rig, sale_id, book=True) == 0

    await eventually(over)
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 0)
    ended = await rig.sql(
        "SELECT w.state, r.state, count(*), count(DISTINCT w.decision_number), max(w.decision_number)"
        " FROM waitlist w JOIN reservations r USING (reservation_id) WHERE w.sale_id = %s GROUP BY 1, 2",
        sale_id,
    )
    assert ended == [("CLOSED", "RELEASED", 5_000, 5_000, 5_000)]
