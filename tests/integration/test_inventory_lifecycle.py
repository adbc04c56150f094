"""The life of a sale with several processes, under load, with servers away, and on databases that were there before."""

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.sale import SaleState
from inventory_svc.sale_book import MIGRATIONS, SaleBook
from inventory_svc.settings import Settings
from mesh import migrations
from mesh.postgres import open_pool
from tests.support.inventory_rig import AGAIN, OK, SOLD_OUT, InventoryRig, inventory_rig, item, second_rig
from tests.support.sale_life import ask, changes_of, in_s, sale_of, sell, state_name, until_state
from tests.support.servers import Servers
from tests.support.waiting import eventually

NOT_OPEN = ErrorReason.ERROR_REASON_SALE_NOT_OPEN


@pytest_asyncio.fixture(scope="module")
async def rigs(servers: Servers) -> AsyncIterator[list[InventoryRig]]:
    """Three processes' services on one database and one Redis."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(inventory_rig(servers, timekeeper_period_ms=200))
        others = [await stack.enter_async_context(second_rig(first.settings)) for _ in range(2)]
        yield [first, *others]


async def test_sales_open_and_close_at_their_times_once_however_many_processes_there_are(
    rigs: list[InventoryRig],
) -> None:
    rig, count = rigs[0], 8
    opens, closes = in_s(1.0), in_s(2.0)
    made = [
        (await rigs[number % 3].create_sale(5, open_time=opens, close_time=closes)).sale_id for number in range(count)
    ]
    wishes = [item(sale_id, "early bird") for sale_id in made]
    reasons = await rig.reserve(wishes)
    if time.time() < opens.ToNanoseconds() / 1e9:
        assert reasons == [NOT_OPEN] * count
    for sale_id in made:
        sale = await until_state(rig, sale_id, "OPEN")
        assert 0 <= sale.state_time.ToNanoseconds() - opens.ToNanoseconds() < 0.9e9
    assert await rig.reserve_until_decided(wishes) == [OK] * count
    for sale_id in made:
        sale = await until_state(rig, sale_id, "CLOSED")
        assert sale.state_time.ToNanoseconds() >= closes.ToNanoseconds()
    for asked in rigs:
        late = await asked.reserve_until_decided([item(sale_id, "late") for sale_id in made])
        assert late == [NOT_OPEN] * count
    # Time for two more rounds of every timekeeper: nothing is done twice.
    await asyncio.sleep(0.5)
    for sale_id in made:
        assert await changes_of(rig, sale_id) == [
            ("", "UNSPECIFIED", "SCHEDULED", 5),
            ("schedule", "SCHEDULED", "OPEN", 5),
            ("schedule", "OPEN", "CLOSED", 5),
        ]
        # What was reserved in time goes on to settle.
        assert await rig.confirm([item(sale_id, "early bird").reservation_id]) == [(OK, [1])]


async def test_an_appointment_is_met_although_rounds_are_rare(servers: Servers) -> None:
    async with inventory_rig(servers, timekeeper_period_ms=60_000) as rig:
        opens = in_s(0.5)
        sale = await rig.create_sale(5, open_time=opens)
        sale = await until_state(rig, sale.sale_id, "OPEN")
        # Within milliseconds on a machine that is not busy; the next round would come in a minute.
        assert 0 <= sale.state_time.ToNanoseconds() - opens.ToNanoseconds() < 1e9


async def test_a_sale_that_is_sold_out_is_noted_once_by_three_processes(rigs: list[InventoryRig]) -> None:
    sale_id = await rigs[0].open_sale(3)
    for _ in range(3):
        sold = [await sell(rig, sale_id) for rig in rigs]
        await until_state(rigs[1], sale_id, "SOLD_OUT")
        await rigs[2].release(sold, revoke_sold=True)
        await until_state(rigs[1], sale_id, "OPEN")
    # Time for two more rounds of every timekeeper.
    await asyncio.sleep(0.5)
    noted = [change[:3] for change in await changes_of(rigs[0], sale_id)][2:]
    assert noted == [("stock", "OPEN", "SOLD_OUT"), ("stock", "SOLD_OUT", "OPEN")] * 3


async def test_of_changes_asked_for_at_once_each_is_made_once(rigs: list[InventoryRig]) -> None:
    sale_id = (await rigs[0].create_sale(5)).sale_id
    for verb, after in (("Open", "OPEN"), ("Pause", "PAUSED"), ("Open", "OPEN"), ("Close", "CLOSED")):
        done = await asyncio.gather(*(ask(rig, verb, sale_id, actor=verb) for rig in rigs for _ in range(3)))
        assert {state_name(sale.state) for sale in done} == {after}
    assert [change[0] for change in await changes_of(rigs[0], sale_id)] == ["", "Open", "Pause", "Open", "Close"]


async def test_a_total_raised_again_and_again_under_load_is_sold_exactly(rigs: list[InventoryRig]) -> None:
    steps = [60, 61, 150, 400]
    sale_id = await rigs[0].open_sale(steps[0], per_user=1, per_purchase=1)
    won: dict[str, list[int]] = {}
    ended = asyncio.Event()

    async def buy(lane: int) -> None:
        rig, number = rigs[lane % 3], 0
        while not ended.is_set():
            number += 1
            wishes = [item(sale_id, f"lane {lane} user {number} {each}") for each in range(5)]
            reasons = await rig.reserve_until_decided(wishes)
            assert set(reasons) <= {OK, SOLD_OUT}
            ids = [wish.reservation_id for wish, reason in zip(wishes, reasons, strict=True) if reason == OK]
            if ids:
                for key, (reason, numbers) in zip(ids, await rig.confirm(ids), strict=True):
                    assert (reason, len(numbers)) == (OK, 1)
                    won[key] = numbers

    async def sold_all(total: int) -> bool:
        return len(won) >= total

    buying = [asyncio.create_task(buy(lane)) for lane in range(6)]
    try:
        for place, total in enumerate(steps):
            if place:
                # By several at once, as an operator who presses twice.
                await asyncio.gather(*(ask(rig, "Raise", sale_id, total=total, actor="olga") for rig in rigs))
            # Every new unit finds a buyer, and never more.
            await eventually(lambda total=total: sold_all(total), within_s=30)  # type: ignore[misc]
            assert len(won) == total
    finally:
        ended.set()
        await asyncio.gather(*buying)
    assert sorted(number for numbers in won.values() for number in numbers) == list(range(1, steps[-1] + 1))
    await until_state(rigs[0], sale_id, "SOLD_OUT")
    for book in (False, True):
        assert await rigs[1].stock(sale_id, book=book) == (0, 0, steps[-1])
    raised = [change[3] for change in await changes_of(rigs[0], sale_id) if change[0] == "olga"]
    assert raised == steps[1:]


async def test_a_sale_ends_at_its_time_under_a_storm_of_buyers(rigs: list[InventoryRig]) -> None:
    closes = in_s(1.5)
    sale_id = (await rigs[0].create_sale(100_000, open_time=in_s(0), close_time=closes)).sale_id
    await until_state(rigs[0], sale_id, "OPEN")
    reserved: set[str] = set()

    async def buy(lane: int) -> None:
        number = 0
        while True:
            number += 1
            wishes = [item(sale_id, f"storm {lane} {number} {each}") for each in range(20)]
            reasons = await rigs[lane % 3].reserve(wishes)
            assert set(reasons) <= {OK, NOT_OPEN, *AGAIN}
            reserved.update(w.reservation_id for w, reason in zip(wishes, reasons, strict=True) if reason == OK)
            if NOT_OPEN in reasons:
                return

    await asyncio.wait_for(asyncio.gather(*(buy(lane) for lane in range(9))), 20)
    sale = await sale_of(rigs[0], sale_id)
    assert state_name(sale.state) == "CLOSED"
    assert 0 <= sale.state_time.ToNanoseconds() - closes.ToNanoseconds() < 1e9
    # Nobody who was told yes was forgotten, and nobody got one afterwards.
    rows = await rigs[0].sql("SELECT reservation_id::text, create_time FROM reservations WHERE sale_id = %s", sale_id)
    assert reserved <= {row[0] for row in rows}
    assert max(row[1].timestamp() for row in rows) <= sale.state_time.ToNanoseconds() / 1e9


async def test_a_sale_opens_in_time_without_redis_and_sells_when_it_is_back(servers: Servers) -> None:
    async with inventory_rig(servers, timekeeper_period_ms=100) as rig:
        sale = await rig.create_sale(2, open_time=in_s(1.0))
        await asyncio.to_thread(servers.stop, "redis")
        try:
            await until_state(rig, sale.sale_id, "OPEN")
            assert await rig.reserve([item(sale.sale_id, "a")]) == [ErrorReason.ERROR_REASON_UNAVAILABLE]
        finally:
            await asyncio.to_thread(servers.start, "redis")
        assert await rig.reserve_until_decided([item(sale.sale_id, user) for user in "abc"]) == [OK, OK, SOLD_OUT]
        assert len(await changes_of(rig, sale.sale_id)) == 2


async def test_nothing_slips_past_a_change_whose_maker_died_before_its_gate_followed(rigs: list[InventoryRig]) -> None:
    closed, ended, raised = [await rigs[0].open_sale(1) for _ in range(3)]
    await sell(rigs[0], raised)
    await rigs[0].sql("UPDATE sales SET close_time = clock_timestamp() + interval '1 hour' WHERE sale_id = %s", ended)
    async with open_pool(rigs[0].settings.database_url, name="dies", size=1) as pool:
        sales = SaleBook(pool)
        # All that a process does before it dies: the gates know nothing of it.
        await sales.change_state(closed, SaleState.CLOSED, "olga")
        assert await rigs[1].reserve_until_decided([item(closed, "late")]) == [NOT_OPEN]
        await rigs[0].sql("UPDATE sales SET close_time = clock_timestamp() WHERE sale_id = %s", ended)
        await sales.advance(ended)
        assert await rigs[1].reserve_until_decided([item(ended, "late")]) == [NOT_OPEN]
        await sales.raise_total(raised, 2, "olga")

    async def bought() -> bool:
        return await rigs[1].reserve_until_decided([item(raised, "next")]) == [OK]

    await eventually(bought)
    for sale_id in (closed, ended):
        assert await rigs[0].sql("SELECT 1 FROM reservations WHERE sale_id = %s", sale_id) == []


async def test_databases_that_were_there_before_keep_their_sales_and_shares(servers: Servers, tmp_path: Path) -> None:
    url = servers.new_database("inventory")
    for name in ("0001_stock.sql", "0002_by_creation.sql"):
        shutil.copy(MIGRATIONS / name, tmp_path)
    assert len(await migrations.migrate(url, tmp_path)) == 2
    draft, opened, sold_out, closed = (str(uuid.uuid4()) for _ in range(4))
    owners = [str(uuid.uuid4()) for _ in range(3)]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        for sale_id, state in ((draft, "DRAFT"), (opened, "OPEN"), (sold_out, "OPEN"), (closed, "CLOSED")):
            await conn.execute(
                "INSERT INTO sales (sale_id, request_id, display_name, unit_price_minor, currency_code, total,"
                " per_user_limit, per_purchase_limit, state, create_time)"
                " VALUES (%s, %s, 'Fund', 100, 'EUR', 2, 2, 2, %s, '2026-10-01T10:00:00Z')",
                (sale_id, f"request {state} {sale_id}", state),
            )
            next_number = {opened: 2, sold_out: 3}.get(sale_id, 1)
            await conn.execute("INSERT INTO share_pools VALUES (%s, 2, %s)", (sale_id, next_number))
            await conn.execute("INSERT INTO sale_epochs (sale_id, epoch) VALUES (%s, 7)", (sale_id,))
            await conn.execute("INSERT INTO calibration_leases (sale_id) VALUES (%s)", (sale_id,))
        for sale_id, number, owner in ((opened, 1, owners[0]), (sold_out, 1, owners[1]), (sold_out, 2, owners[2])):
            await conn.execute(
                "INSERT INTO reservations (reservation_id, sale_id, user_id, request_id, quantity, state, epoch)"
                " VALUES (%s, %s, 'old', %s, 1, 'SOLD', 7)",
                (owner, sale_id, owner),
            )
            await conn.execute("INSERT INTO share_numbers VALUES (%s, %s, 2, %s)", (sale_id, number, owner))
    assert "0004_lifecycle" in await migrations.migrate(url, MIGRATIONS)
    settings = Settings(database_url=url, redis_url=servers.redis_url, listen="127.0.0.1:0", timekeeper_period_ms=100)
    async with second_rig(settings) as rig:
        await until_state(rig, sold_out, "SOLD_OUT")
        states = [state_name((await sale_of(rig, sale_id)).state) for sale_id in (draft, opened, closed)]
        assert states == ["DRAFT", "OPEN", "CLOSED"]
        sale = await sale_of(rig, opened)
        assert sale.state_time == sale.create_time
        assert (await changes_of(rig, opened)) == [("", "UNSPECIFIED", "DRAFT", 2)]
        # The creation of an old sale is still known again.
        again = await rig.create_sale(
            2,
            per_user=2,
            per_purchase=2,
            request_id=f"request DRAFT {draft}",
            unit_price={"amount_minor": 100, "currency_code": "EUR"},
        )
        assert again.sale_id == draft
        # Old shares are theirs still, and the last judge knows the old total and the new one, and no other.
        await ask(rig, "Raise", opened, total=4)
        await sell(rig, opened, quantity=2)
        await until_state(rig, opened, "OPEN")
        await sell(rig, opened)
        await until_state(rig, opened, "SOLD_OUT")
        assert await rig.stock(opened, book=True) == (0, 0, 4)
        numbers = await rig.sql("SELECT share_number, total FROM share_numbers WHERE sale_id = %s ORDER BY 1", opened)
        assert numbers == [(1, 2), (2, 4), (3, 4), (4, 4)]
        insert = "INSERT INTO share_numbers VALUES (%s, %s, %s, gen_random_uuid())"
        for number, total, error in (
            (4, 4, psycopg.errors.UniqueViolation),
            (5, 4, psycopg.errors.CheckViolation),
            (5, 5, psycopg.errors.ForeignKeyViolation),
        ):
            with pytest.raises(error):
                await rig.sql(insert, opened, number, total)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            await rig.sql("UPDATE share_pools SET total = 5 WHERE sale_id = %s", opened)


async def test_many_that_see_a_change_due_at_once_make_it_once(rigs: list[InventoryRig]) -> None:
    sale_id = (await rigs[0].create_sale(5, open_time=in_s(3600))).sale_id
    passed = in_s(-1)
    done = await asyncio.gather(
        *(ask(rig, "Schedule", sale_id, open_time=passed, actor="olga") for rig in rigs for _ in range(4))
    )
    assert {state_name(sale.state) for sale in done} == {"OPEN"}
    assert await changes_of(rigs[0], sale_id) == [
        ("", "UNSPECIFIED", "SCHEDULED", 5),
        ("olga", "SCHEDULED", "SCHEDULED", 5),
        ("schedule", "SCHEDULED", "OPEN", 5),
    ]
    assert await rigs[1].reserve_until_decided([item(sale_id, "a")]) == [OK]
