"""InventoryService, the life of a sale: which changes are legal, who made them and when, times, and the total."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.sale_life import (
    CONFLICT,
    ask,
    changes_of,
    in_s,
    refusal,
    sale_in_state,
    sale_of,
    sell,
    state_name,
    until_state,
)
from tests.support.servers import Servers

#: What each request makes of a sale in each state; None: it is refused. Raising the total of a sale that is sold out
#: puts it on sale again.
LIFE = {
    "DRAFT": {"Open": "OPEN", "Pause": None, "Close": "CLOSED", "Schedule": "SCHEDULED", "Raise": "DRAFT"},
    "SCHEDULED": {"Open": "OPEN", "Pause": None, "Close": "CLOSED", "Schedule": "SCHEDULED", "Raise": "SCHEDULED"},
    "OPEN": {"Open": "OPEN", "Pause": "PAUSED", "Close": "CLOSED", "Schedule": None, "Raise": "OPEN"},
    "PAUSED": {"Open": "OPEN", "Pause": "PAUSED", "Close": "CLOSED", "Schedule": None, "Raise": "PAUSED"},
    "SOLD_OUT": {"Open": "SOLD_OUT", "Pause": "PAUSED", "Close": "CLOSED", "Schedule": None, "Raise": "OPEN"},
    "CLOSED": {"Open": None, "Pause": None, "Close": "CLOSED", "Schedule": None, "Raise": None},
}


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers, timekeeper_period_ms=50) as opened:
        yield opened


@pytest.mark.parametrize(("present", "verb"), [(present, verb) for present in LIFE for verb in LIFE[present]])
async def test_each_change_is_legal_or_refused_and_noted_or_not(rig: InventoryRig, present: str, verb: str) -> None:
    sale_id = await sale_in_state(rig, present)
    before, noted = await sale_of(rig, sale_id), await changes_of(rig, sale_id)
    contents: dict[str, dict[str, Any]] = {"Schedule": {"open_time": in_s(7200)}, "Raise": {"total": 2}}
    given = contents.get(verb, {})
    wanted = LIFE[present][verb]
    if wanted is None:
        assert await refusal(ask(rig, verb, sale_id, actor="olga", **given)) == CONFLICT
        assert await sale_of(rig, sale_id) == before
        assert await changes_of(rig, sale_id) == noted
        return
    sale = await ask(rig, verb, sale_id, actor="olga", **given)
    assert state_name(sale.state) == wanted
    assert sale == await sale_of(rig, sale_id)
    total = 2 if verb == "Raise" else 1
    if verb == "Raise" and present == "SOLD_OUT":
        fresh = [("olga", "SOLD_OUT", "SOLD_OUT", 2), ("stock", "SOLD_OUT", "OPEN", 2)]
    elif wanted == present and verb not in ("Raise", "Schedule"):
        fresh = []
    else:
        fresh = [("olga", present, wanted, total)]
    assert (await changes_of(rig, sale_id))[len(noted) :] == fresh
    if wanted == present:
        assert (sale.state_actor, sale.state_time) == (before.state_actor, before.state_time)
    else:
        assert sale.state_actor == fresh[-1][0]
        assert sale.state_time.ToNanoseconds() > before.state_time.ToNanoseconds()
    # A repetition changes nothing and notes nothing.
    assert await ask(rig, verb, sale_id, actor="somebody else", **given) == sale
    assert (await changes_of(rig, sale_id))[len(noted) :] == fresh
    stock = (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id))).stock
    assert (stock.total, stock.open) == (total, wanted in ("OPEN", "SOLD_OUT"))


async def test_a_sale_tells_everything_it_was_created_with(rig: InventoryRig) -> None:
    opens, closes = in_s(3600), in_s(7200)
    given: dict[str, Any] = {
        "open_time": opens,
        "close_time": closes,
        "eligible_users_only": True,
        "overtaking_allowed": True,
    }
    sale = await rig.create_sale(5, actor="olga", **given)
    assert state_name(sale.state) == "SCHEDULED"
    assert (sale.open_time, sale.close_time) == (opens, closes)
    assert (sale.eligible_users_only, sale.overtaking_allowed) == (True, True)
    assert sale.state_actor == "olga"
    assert sale.state_time.ToNanoseconds() >= sale.create_time.ToNanoseconds()
    assert await changes_of(rig, sale.sale_id) == [("olga", "UNSPECIFIED", "SCHEDULED", 5)]
    listed = (await rig.inventory.ListSales(pb.ListSalesRequest(page_size=1))).sales
    assert list(listed) == [sale] == [await sale_of(rig, sale.sale_id)]
    plain = await rig.create_sale(5)
    assert {plain.HasField("open_time"), plain.HasField("close_time")} == {False}
    assert (plain.eligible_users_only, plain.overtaking_allowed, plain.state_actor) == (False, False, "")


async def test_a_creation_is_known_again_although_the_sale_has_changed(rig: InventoryRig) -> None:
    asked: dict[str, Any] = {"request_id": uuid.uuid4().hex, "open_time": in_s(3600), "close_time": in_s(7200)}
    sale = await rig.create_sale(5, **asked)
    await ask(rig, "Raise", sale.sale_id, total=9)
    await ask(rig, "Schedule", sale.sale_id, open_time=in_s(1800))
    again = await rig.create_sale(5, actor="another", **asked)
    assert (again.sale_id, again.total) == (sale.sale_id, 9)
    reused = (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", set[str]())
    assert await refusal(rig.create_sale(9, **asked)) == reused
    for change in (
        {"open_time": in_s(1)},
        {"close_time": in_s(9000)},
        {"eligible_users_only": True},
        {"overtaking_allowed": True},
    ):
        assert await refusal(rig.create_sale(5, **(asked | change))) == reused


async def test_times_can_be_set_changed_and_taken_away(rig: InventoryRig) -> None:
    sale_id = (await rig.create_sale(1)).sale_id
    opens, closes = in_s(3600), in_s(7200)
    sale = await ask(rig, "Schedule", sale_id, open_time=opens, close_time=closes, actor="a")
    assert (state_name(sale.state), sale.open_time, sale.close_time) == ("SCHEDULED", opens, closes)
    sale = await ask(rig, "Schedule", sale_id, close_time=closes, actor="b")
    assert (state_name(sale.state), sale.HasField("open_time"), sale.close_time) == ("DRAFT", False, closes)
    sale = await ask(rig, "Schedule", sale_id, actor="c")
    assert (state_name(sale.state), sale.HasField("close_time")) == ("DRAFT", False)
    assert [change[:3] for change in await changes_of(rig, sale_id)] == [
        ("", "UNSPECIFIED", "DRAFT"),
        ("a", "DRAFT", "SCHEDULED"),
        ("b", "SCHEDULED", "DRAFT"),
        ("c", "DRAFT", "DRAFT"),
    ]


@pytest.mark.parametrize("state", ["OPEN", "PAUSED", "SOLD_OUT"])
async def test_a_sale_that_was_opened_keeps_its_opening_time_and_may_be_given_an_end(
    rig: InventoryRig, state: str
) -> None:
    sale_id = await sale_in_state(rig, state)
    closes = in_s(3600)
    sale = await ask(rig, "Schedule", sale_id, close_time=closes)
    assert (state_name(sale.state), sale.close_time) == (state, closes)
    assert not (await ask(rig, "Schedule", sale_id)).HasField("close_time")
    assert await refusal(ask(rig, "Schedule", sale_id, open_time=in_s(60))) == CONFLICT


async def test_an_opening_time_that_has_passed_opens_at_once_and_an_end_that_has_passed_ends(rig: InventoryRig) -> None:
    sale_id = (await rig.create_sale(1)).sale_id
    sale = await ask(rig, "Schedule", sale_id, open_time=in_s(-1), actor="olga")
    assert (state_name(sale.state), sale.state_actor) == ("OPEN", "schedule")
    assert await rig.reserve([item(sale_id, "a")]) == [OK]
    # The time it has may be repeated.
    assert await ask(rig, "Schedule", sale_id, open_time=sale.open_time) == sale
    sale = await ask(rig, "Schedule", sale_id, close_time=in_s(-0.5), actor="olga")
    assert (state_name(sale.state), sale.state_actor) == ("CLOSED", "schedule")
    assert await changes_of(rig, sale_id) == [
        ("", "UNSPECIFIED", "DRAFT", 1),
        ("olga", "DRAFT", "SCHEDULED", 1),
        ("schedule", "SCHEDULED", "OPEN", 1),
        ("olga", "OPEN", "OPEN", 1),
        ("schedule", "OPEN", "CLOSED", 1),
    ]
    late = await rig.create_sale(1, open_time=in_s(-2), close_time=in_s(-1))
    await until_state(rig, late.sale_id, "CLOSED")
    assert [change[2] for change in await changes_of(rig, late.sale_id)] == ["SCHEDULED", "CLOSED"]


BEYOND = Timestamp(seconds=10**15)


@pytest.mark.parametrize(
    ("verb", "given", "field"),
    [
        ("Schedule", {"open_time": in_s(20), "close_time": in_s(10)}, "close_time"),
        ("Schedule", {"open_time": BEYOND}, "open_time"),
        ("Schedule", {"close_time": BEYOND}, "close_time"),
        ("Schedule", {"actor": "x" * 129}, "actor"),
        ("Open", {"actor": "line\nbreak"}, "actor"),
        ("Pause", {"actor": " a"}, "actor"),
        ("Close", {"actor": "x" * 129}, "actor"),
        ("Raise", {"actor": "x" * 129, "total": 5}, "actor"),
        ("Raise", {"total": 0}, "total"),
        ("Raise", {"total": 4}, "total"),
        ("Raise", {"total": 10_000_001}, "total"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(
    rig: InventoryRig, verb: str, given: dict[str, Any], field: str
) -> None:
    sale = await rig.create_sale(5)
    found = await refusal(ask(rig, verb, sale.sale_id, **given))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {field})
    assert await sale_of(rig, sale.sale_id) == sale


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"open_time": in_s(20), "close_time": in_s(10)}, "close_time"),
        ({"open_time": BEYOND}, "open_time"),
        ({"actor": "x" * 129}, "actor"),
    ],
)
async def test_a_wrong_field_of_a_creation_is_named(rig: InventoryRig, given: dict[str, Any], field: str) -> None:
    found = await refusal(rig.create_sale(5, **given))
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {field})


async def test_changes_are_listed_page_by_page(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    for actor in ("a", "b"):
        await ask(rig, "Pause", sale_id, actor=actor)
        await ask(rig, "Open", sale_id, actor=actor)
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListSaleChangesRequest(sale_id=sale_id, page_size=4, page_token=token)
        page = await rig.inventory.ListSaleChanges(request)
        listed += [change.actor for change in page.changes]
        token = page.next_page_token
        if not token:
            break
        assert len(page.changes) == 4
    assert listed == ["", "", "a", "a", "b", "b"]
    wrong = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", {"page_token"})
    request = pb.ListSaleChangesRequest(sale_id=(await rig.create_sale(1)).sale_id, page_token="nonsense")
    assert await refusal(rig.inventory.ListSaleChanges(request)) == wrong


async def test_a_sale_is_sold_out_when_every_share_is_sold_and_open_again_when_one_returns(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(2)
    held = item(sale_id, "holder")
    first = await sell(rig, sale_id)
    assert await rig.reserve([held]) == [OK]
    # Nothing is available, but one share is not sold yet and may come back.
    assert await rig.stock(sale_id) == (0, 1, 1)
    assert state_name((await sale_of(rig, sale_id)).state) == "OPEN"
    await rig.confirm([held.reservation_id])
    sale = await until_state(rig, sale_id, "SOLD_OUT")
    assert sale.state_actor == "stock"
    assert await rig.reserve([item(sale_id, "late")]) == [SOLD_OUT]
    # A winner who asks again is still told that it has won.
    assert await rig.reserve([held]) == [OK]
    epoch = (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id))).stock.epoch
    await rig.release([first], revoke_sold=True)
    # At once on sale again, whatever the state says yet.
    assert await rig.reserve([item(sale_id, "next")]) == [OK]
    await until_state(rig, sale_id, "OPEN")
    await rig.confirm([item(sale_id, "next").reservation_id])
    await until_state(rig, sale_id, "SOLD_OUT")
    assert [change[:3] for change in await changes_of(rig, sale_id)][2:] == [
        ("stock", "OPEN", "SOLD_OUT"),
        ("stock", "SOLD_OUT", "OPEN"),
        ("stock", "OPEN", "SOLD_OUT"),
    ]
    # That everything is sold is no business of the gate's: it was not rebuilt.
    stock = (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id))).stock
    assert (stock.epoch, stock.open) == (epoch, True)
    # Nor does a recalibration shut it, and the book agrees.
    await rig.recalibrate(sale_id)
    for source in (pb.StockSource.STOCK_SOURCE_GATE, pb.StockSource.STOCK_SOURCE_BOOK):
        assert (await rig.inventory.GetStock(pb.GetStockRequest(sale_id=sale_id, source=source))).stock.open
    assert await rig.reserve([item(sale_id, "too late")]) == [SOLD_OUT]


async def test_a_paused_sale_stays_paused_and_is_opened_as_what_its_stock_says(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    wish = item(sale_id, "a")
    assert await rig.reserve([wish]) == [OK]
    await ask(rig, "Pause", sale_id)
    await rig.confirm([wish.reservation_id])
    assert state_name((await ask(rig, "Open", sale_id, actor="olga")).state) == "SOLD_OUT"
    await ask(rig, "Pause", sale_id)
    await rig.release([wish.reservation_id], revoke_sold=True)
    assert state_name((await ask(rig, "Open", sale_id, actor="olga")).state) == "OPEN"
    assert [change[1:3] for change in await changes_of(rig, sale_id)][2:] == [
        ("OPEN", "PAUSED"),
        ("PAUSED", "SOLD_OUT"),
        ("SOLD_OUT", "PAUSED"),
        ("PAUSED", "OPEN"),
    ]


async def test_a_raised_total_sells_numbers_beyond_the_first_and_none_twice(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(3)
    sold = [await sell(rig, sale_id) for _ in range(3)]
    await until_state(rig, sale_id, "SOLD_OUT")
    await rig.release([sold[1]], revoke_sold=True)
    assert (await ask(rig, "Raise", sale_id, total=5)).total == 5
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (3, 0, 2)
    wish = item(sale_id, "many", quantity=3)
    assert await rig.reserve([wish]) == [OK]
    # The number that came back goes first.
    assert await rig.confirm([wish.reservation_id]) == [(OK, [2, 4, 5])]
    assert await rig.reserve([item(sale_id, "late")]) == [SOLD_OUT]
    await until_state(rig, sale_id, "SOLD_OUT")
    assert await rig.stock(sale_id) == await rig.stock(sale_id, book=True) == (0, 0, 5)
    judged = await rig.sql("SELECT share_number, total FROM share_numbers WHERE sale_id = %s ORDER BY 1", sale_id)
    assert judged == [(1, 3), (2, 3), (3, 3), (4, 5), (5, 5)]


async def test_what_is_reserved_when_the_total_is_raised_is_kept(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(2)
    wishes = [item(sale_id, "a"), item(sale_id, "b")]
    assert await rig.reserve(wishes) == [OK, OK]
    await ask(rig, "Raise", sale_id, total=3)
    assert await rig.stock(sale_id) == (1, 2, 0)
    assert await rig.reserve(wishes) == [OK, OK]
    assert await rig.stock(sale_id) == (1, 2, 0)
    assert await rig.confirm([wish.reservation_id for wish in wishes]) == [(OK, [1]), (OK, [2])]


@pytest.mark.parametrize("verb", ["Schedule", "Raise"])
async def test_an_unknown_sale_is_not_found(rig: InventoryRig, verb: str) -> None:
    not_found = (grpc.StatusCode.NOT_FOUND, "SALE_NOT_FOUND", set[str]())
    given = {"total": 5} if verb == "Raise" else {}
    assert await refusal(ask(rig, verb, str(uuid.uuid4()), **given)) == not_found
    request = pb.ListSaleChangesRequest(sale_id=str(uuid.uuid4()))
    assert await refusal(rig.inventory.ListSaleChanges(request)) == not_found
    users = pb.BatchAddEligibleUsersRequest(sale_id=str(uuid.uuid4()), user_ids=["a"])
    assert await refusal(rig.inventory.BatchAddEligibleUsers(users)) == not_found
