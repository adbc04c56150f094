"""The line when processes and servers fail: its order survives, and nobody in it is lost, or served twice."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis as blocking_redis
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from mesh.channels import open_channel
from stack.ports import PortLease
from tests.support.inventory_rig import OK, SOLD_OUT, InventoryRig, inventory_rig, item
from tests.support.servers import Servers
from tests.support.waiting import eventually
from tests.support.waitlist_rig import (
    LineParts,
    ask,
    at_rest,
    entries,
    ids_of,
    joining,
    leave,
    line_parts,
    places,
    promoted_in_order,
    sold_out_sale,
    states,
    wish_of,
)

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ErrorReason.ERROR_REASON_RESERVATION_RELEASED
AGAIN = ErrorReason.ERROR_REASON_STOCK_RECALIBRATING


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    """A service whose promoter looks at no line by itself: what is half done is left to the reaper."""
    changes = {"reaper_period_ms": 200, "grant_age_max_ms": 2_000, "promoter_period_ms": 60_000}
    async with inventory_rig(servers, **changes) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module")
async def parts(rig: InventoryRig) -> AsyncIterator[LineParts]:
    async with line_parts(rig) as opened:
        yield opened


def flush(servers: Servers) -> None:
    with blocking_redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()


LOSSES: dict[str, Callable[[Servers], object]] = {
    "kill": lambda servers: servers.kill("redis"),
    "flush": flush,
}


async def eventually_states(rig: InventoryRig, ids: list[str], expected: list[str]) -> None:
    async def so() -> bool:
        return await states(rig, ids) == expected

    await eventually(so)


@pytest.mark.parametrize("loss", list(LOSSES))
async def test_the_order_survives_what_redis_forgets(servers: Servers, rig: InventoryRig, loss: str) -> None:
    sale_id, holders = await sold_out_sale(rig, 10, per_user=3)
    line = [joining(sale_id, f"u{number}") for number in range(20)]
    await ask(rig, line)
    await leave(rig, ids_of(line[3:4]))
    await rig.release(holders[:2])
    await asyncio.to_thread(LOSSES[loss], servers)
    await rig.release(holders[2:4])
    assert await at_rest(rig, sale_id) == ((0, 10, 0), 15)
    # Who waited still does, at the same place, counts for the user's limit, and is not overtaken.
    again = [*line[5:], line[3], item(sale_id, "new"), joining(sale_id, "u6", "r2", 3), joining(sale_id, "last")]
    expected = [f"waits {number + 1}" for number in range(15)]
    limit = ErrorReason.ERROR_REASON_USER_LIMIT_REACHED
    assert await ask(rig, again) == [*expected, RELEASED, SOLD_OUT, limit, "waits 16"]
    await rig.release(holders[4:])
    assert await promoted_in_order(rig, sale_id) == ids_of(line[:3] + line[4:11])
    assert await at_rest(rig, sale_id) == ((0, 10, 0), 10)


async def test_a_join_whose_row_never_came_is_ended_and_holds_nobody_up(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    lost = joining(sale_id, "lost", quantity=2)
    await parts.gate.reserve(sale_id, [wish_of(lost)])
    await rig.release(holders[:1])
    assert await rig.reserve([item(sale_id, "new")]) == [SOLD_OUT]
    assert await at_rest(rig, sale_id) == ((1, 1, 0), 0)
    assert await ask(rig, [lost]) == [RELEASED]
    assert await leave(rig, [lost.reservation_id]) == [ErrorReason.ERROR_REASON_RESERVATION_NOT_FOUND]
    assert await rig.reserve([item(sale_id, "new")]) == [OK]
    assert await at_rest(rig, sale_id) == ((0, 2, 0), 0)


async def test_a_repetition_makes_a_lost_join_durable(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _ = await sold_out_sale(rig, 1)
    wish = joining(sale_id, "persistent")
    await parts.gate.reserve(sale_id, [wish_of(wish)])
    assert await ask(rig, [item(sale_id, "persistent")]) == ["waits 1"]
    await asyncio.sleep(3)  # Beyond the age at which the reaper looks at it: it must leave it where it is.
    assert await places(rig, [wish.reservation_id]) == [(1, 0)]
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 1)


async def test_a_unit_that_came_back_while_somebody_was_joining_is_theirs(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    wish = joining(sale_id, "a")
    answer = await parts.gate.reserve(sale_id, [wish_of(wish)])
    assert answer.in_line == {0}
    # SQL knows of nobody in line, so the unit goes to the gate, where somebody waits.
    assert await rig.release(holders) == [OK]
    assert await rig.reserve([item(sale_id, "new")]) == [SOLD_OUT]
    assert await ask(rig, [wish]) in (["waits 1"], [OK])
    await eventually_states(rig, [wish.reservation_id], ["RESERVED"])
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 0)


async def test_a_join_of_an_older_epoch_is_refused(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _ = await sold_out_sale(rig, 1)
    wish = wish_of(joining(sale_id, "late"))
    answer = await parts.gate.reserve(sale_id, [wish])
    assert answer.in_line == {0}
    await rig.recalibrate(sale_id)
    assert await parts.waitlist.join(sale_id, answer.epoch, [wish]) is None
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 0)


async def test_a_join_that_comes_after_its_tombstone_gets_no_place(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _ = await sold_out_sale(rig, 1)
    wish = wish_of(joining(sale_id, "slow"))
    answer = await parts.gate.reserve(sale_id, [wish])
    assert await parts.book.bury(sale_id, answer.epoch, [wish]) == {wish.reservation_id: RELEASED}
    joined = await parts.waitlist.join(sale_id, answer.epoch, [wish])
    assert joined is not None
    assert [one.reason for one in joined.values()] == [RELEASED]
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 0)


async def test_the_reaper_never_ends_somebodys_wait(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    wish = joining(sale_id, "a")
    await ask(rig, [wish])
    epoch = (await parts.gate.read(sale_id)).epoch
    assert await parts.book.bury(sale_id, epoch, [wish_of(wish)]) == {wish.reservation_id: OK}
    assert await places(rig, [wish.reservation_id]) == [(1, 0)]
    await rig.release(holders)
    assert await states(rig, [wish.reservation_id]) == ["RESERVED"]


async def until_promoter_has_come_round(rig: InventoryRig) -> None:
    """Waits until the service's promoter has looked at every line that it was woken for before: it serves those in
    turn, and here is one more, of whose service something is to be seen."""
    sale_id, _ = await sold_out_sale(rig, 1)
    last = joining(sale_id, "last")
    await ask(rig, [last])
    await rig.inventory.RaiseSaleTotal(pb.RaiseSaleTotalRequest(sale_id=sale_id, total=2), timeout=10)
    await eventually_states(rig, [last.reservation_id], ["RESERVED"])


async def half_promoted(rig: InventoryRig, parts: LineParts) -> tuple[str, str, list[pb.ReserveItem]]:
    """A sale of three units, of which one has a holder, and the other two the gate alone has given to the first two of
    three in line; its id, the holder and the line."""
    sale_id = await rig.open_sale(3)
    holder = item(sale_id, "holder")
    assert await rig.reserve([holder]) == [OK]
    # The opening woke the promoter, which would complete what is half done here.
    await until_promoter_has_come_round(rig)
    # By the parts from here on, of whose doing the service's promoter hears nothing.
    large, *line = [joining(sale_id, "large", quantity=3), *(joining(sale_id, user) for user in "abc")]
    wishes = [wish_of(one) for one in (large, *line)]
    epoch = (await parts.gate.reserve(sale_id, wishes)).epoch
    assert await parts.waitlist.join(sale_id, epoch, wishes) is not None
    taken = await parts.gate.promote(sale_id, ids_of(line), overtaking_allowed=False)
    assert taken.reservation_ids == ids_of(line[:2])
    # No unit is available by now, so that whoever makes this move wakes nobody.
    _, moves = await parts.waitlist.leave([large.reservation_id])
    await parts.moves.follow(moves)
    assert await rig.stock(sale_id) == (0, 3, 0)
    assert await rig.stock(sale_id, book=True) == (2, 1, 0)
    return sale_id, holder.reservation_id, line


async def test_the_reaper_completes_a_promotion_that_redis_alone_knows(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _, line = await half_promoted(rig, parts)
    await eventually_states(rig, ids_of(line), ["RESERVED", "RESERVED", "WAITING"])
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 1)
    assert await promoted_in_order(rig, sale_id) == ids_of(line[:2])


async def test_nobody_is_promoted_in_sql_before_somebody_else_who_waits(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _, line = await half_promoted(rig, parts)
    epoch, ids = (await parts.gate.read(sale_id)).epoch, ids_of(line)
    late = await parts.waitlist.promote(sale_id, epoch, ids[1:2])
    assert late is not None
    assert (late.promoted, late.decided) == ([], [])
    both = await parts.waitlist.promote(sale_id, epoch, ids[1::-1])
    assert both is not None
    assert both.promoted == ids[:2]
    assert await parts.waitlist.promote(sale_id, epoch - 1, ids[2:]) is None
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 1)


async def test_who_is_half_promoted_is_still_told_to_wait_and_can_leave(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, _, line = await half_promoted(rig, parts)
    assert await ask(rig, line[:2]) == ["waits 1", "waits 2"]
    assert await leave(rig, ids_of(line[:1])) == [OK]
    await eventually_states(rig, ids_of(line), ["RELEASED", "RESERVED", "RESERVED"])
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 0)


async def test_a_release_that_promotes_whom_the_gate_has_served_frees_a_unit(
    rig: InventoryRig, parts: LineParts
) -> None:
    sale_id, holder, line = await half_promoted(rig, parts)
    assert await rig.release([holder]) == [OK]
    await eventually_states(rig, ids_of(line), ["RESERVED"] * 3)
    assert await at_rest(rig, sale_id) == ((0, 3, 0), 0)
    assert await promoted_in_order(rig, sale_id) == ids_of(line)


async def test_a_unit_that_is_passed_on_is_not_given_back_besides(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    line = [joining(sale_id, "a"), joining(sale_id, "b")]
    await ask(rig, line)
    # Its move is not made yet: the process that released it hangs.
    reasons, moves = await parts.book.release(holders, revoke_sold=False)
    assert (reasons, moves[0].promoted_ids) == ({holders[0]: OK}, (line[0].reservation_id,))
    assert await rig.reserve([item(sale_id, "holder0")]) == [RELEASED]
    # Had that given the unit back, the promoter would hand it to the second in line: two for one unit.
    line_now = await parts.waitlist.line(sale_id)
    assert line_now is not None
    assert await parts.promoter.promote(line_now) == 0
    assert await states(rig, ids_of(line)) == ["RESERVED", "WAITING"]
    assert await at_rest(rig, sale_id) == ((0, 1, 0), 1)


async def test_moves_of_a_chain_may_be_made_in_any_order(rig: InventoryRig, parts: LineParts) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    line = [joining(sale_id, user) for user in "abc"]
    await ask(rig, line)
    ids = ids_of(line)
    moves = [(await parts.book.release([key], revoke_sold=False))[1][0] for key in [holders[0], *ids[:2]]]
    assert [move.promoted_ids for move in moves] == [(key,) for key in ids]
    _, sold = await parts.book.confirm(ids[2:])
    for move in [*sold, *moves[::-1]]:
        await parts.moves.follow([move])
    assert await at_rest(rig, sale_id) == ((0, 0, 1), 0)
    assert await states(rig, ids) == ["RELEASED", "RELEASED", "SOLD"]


@asynccontextmanager
async def other_process(
    rig: InventoryRig, failpoints: Path
) -> AsyncIterator[tuple[InventoryRig, asyncio.subprocess.Process]]:
    """A process of the service on the same servers, in which points can be armed."""
    lease = PortLease()
    target = f"127.0.0.1:{lease.ports.inventory}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("INVENTORY_")},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "INVENTORY_DATABASE_URL": rig.settings.database_url,
        "INVENTORY_REDIS_URL": rig.settings.redis_url,
        "INVENTORY_LISTEN": target,
        "MESH_ENVIRONMENT": "test",
        "MESH_FAILPOINTS_DIR": str(failpoints),
    }
    command = [sys.executable, "-m", "inventory_svc", "serve"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.DEVNULL)
    channel = open_channel(target)
    try:
        await asyncio.wait_for(channel.channel_ready(), 20)
        yield InventoryRig(InventoryServiceStub(channel), rig.settings), process
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        lease.close()


@pytest.mark.parametrize("point", ["inventory.promoting", "inventory.promoted"])
async def test_a_promoter_that_dies_half_way_is_finished_by_the_others(
    rig: InventoryRig, tmp_path: Path, point: str
) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    line = [joining(sale_id, user) for user in "abc"]
    await ask(rig, line)
    await rig.inventory.PauseSale(pb.PauseSaleRequest(sale_id=sale_id))
    await rig.release(holders)
    async with other_process(rig, tmp_path) as (other, process):
        (tmp_path / point).write_text("kill")
        await asyncio.gather(
            other.inventory.OpenSale(pb.OpenSaleRequest(sale_id=sale_id), timeout=10), return_exceptions=True
        )
        assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGKILL
    assert f"{point}.fired.{process.pid}" in os.listdir(tmp_path)
    await eventually_states(rig, ids_of(line), ["RESERVED", "RESERVED", "WAITING"])
    assert await at_rest(rig, sale_id) == ((0, 2, 0), 1)
    assert await promoted_in_order(rig, sale_id) == ids_of(line[:2])


@pytest.mark.parametrize("point", ["inventory.granted", "inventory.joined", "inventory.released", "inventory.left"])
async def test_a_process_that_dies_between_two_steps_of_the_line_loses_nothing(
    rig: InventoryRig, tmp_path: Path, point: str
) -> None:
    sale_id, holders = await sold_out_sale(rig, 2)
    line = [joining(sale_id, user) for user in "abc"]
    await ask(rig, line[:2])
    async with other_process(rig, tmp_path) as (other, process):
        (tmp_path / point).write_text("kill")
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "inventory.granted": lambda: ask(other, line[2:]),
            "inventory.joined": lambda: ask(other, line[2:]),
            "inventory.released": lambda: other.release(holders[:1]),
            "inventory.left": lambda: leave(other, ids_of(line[:1])),
        }
        await asyncio.gather(calls[point](), return_exceptions=True)
        assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGKILL
    if point == "inventory.left":
        assert await leave(rig, ids_of(line[:1])) == [OK]
        assert await states(rig, ids_of(line[:2])) == ["RELEASED", "WAITING"]
    elif point == "inventory.released":
        assert await rig.release(holders[:1]) == [OK]
        assert await states(rig, ids_of(line[:2])) == ["RESERVED", "WAITING"]
    else:
        # The buyer repeats the request, in time.
        assert await ask(rig, line[2:]) == ["waits 3"]
    (_, reserved, _), waiting = await at_rest(rig, sale_id)
    assert (reserved, waiting) == (2, 3 if point in ("inventory.granted", "inventory.joined") else 1)
    assert [entry.ticket for entry in await entries(rig, sale_id)] == list(range(1, waiting + 1 + (waiting == 1)))


async def test_while_sql_is_away_nobody_is_told_to_wait(servers: Servers, rig: InventoryRig) -> None:
    sale_id, holders = await sold_out_sale(rig, 1)
    first, second = joining(sale_id, "a"), joining(sale_id, "b")
    await ask(rig, [first])
    await asyncio.to_thread(servers.stop, "postgres")
    try:
        assert await ask(rig, [first, second]) == [ErrorReason.ERROR_REASON_UNAVAILABLE] * 2
    finally:
        await asyncio.to_thread(servers.start, "postgres")
    (_, reserved, _), waiting = await at_rest(rig, sale_id)
    # The second is ended by the reaper or, if it was asked for again in time, waits; the first waits in any case.
    assert (reserved, waiting) == (1, 1)
    await rig.release(holders)
    assert await states(rig, ids_of([first, second])) == ["RESERVED", "RELEASED"]
