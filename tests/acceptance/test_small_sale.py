"""A small sale through every process of the system, judged three times: by the runner, by the audit, by a recount."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.audit.auditing import audit, run
from bench.clients import Clients, open_clients
from bench.sale.display import Display
from bench.sale.report import SaleEnd
from bench.sale.running import SaleSettings, run_sale
from tests.acceptance import planted
from tests.acceptance.recount import Recount
from tests.support.servers import MeshStack

USERS, SHARES, POOR, WAIT = 300, 100, 0.05, 0.2
REPORT_KEYS = {
    *("users", "shares", "answered", "accepted", "sold_out", "shed_429", "errors", "burst_wall_s"),
    *("p50_ms", "p99_ms", "max_ms", "accepted_p99_ms", "accepted_first_wave", "confirmed", "failed"),
    *("resold_in_burst", "settle_wall_s", "balance_rate_max_per_s", "audit_violations"),
    *("waitlisted", "promoted", "waiting_at_close", "refunded", "statement"),
}


@pytest.fixture(scope="module")
async def clients(mesh_stack: MeshStack) -> AsyncIterator[Clients]:
    async with open_clients(mesh_stack.environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def recount(mesh_stack: MeshStack) -> Recount:
    return Recount(mesh_stack.environment)


async def sell(stack: MeshStack, reports: Path, settings: SaleSettings) -> tuple[SaleEnd, list[str]]:
    display = Display(settings.users, settings.shares, io.StringIO())
    return await run_sale(settings, stack.environment, reports, display)


@pytest.fixture(scope="module")
async def sale(mesh_stack: MeshStack, tmp_path_factory: pytest.TempPathFactory) -> tuple[SaleEnd, list[str], Path]:
    reports = tmp_path_factory.mktemp("reports")
    settings = SaleSettings(users=USERS, shares=SHARES, poor=POOR, wait=WAIT, connections=100)
    return *(await sell(mesh_stack, reports, settings)), reports


async def test_a_small_sale_sells_every_share_once_and_answers_everybody(
    sale: tuple[SaleEnd, list[str], Path],
) -> None:
    end, broken, reports = sale
    assert broken == []
    report = json.loads((reports / "sale.json").read_text())
    assert set(report) == REPORT_KEYS
    assert (report["users"], report["answered"], report["errors"]) == (USERS, USERS, 0)
    assert report["confirmed"] == SHARES
    assert report["accepted"] + report["waitlisted"] + report["sold_out"] == USERS
    # Whoever could not pay made room for somebody in line, and for nobody else once there was a line.
    assert report["promoted"] > 0
    assert report["waitlisted"] == report["promoted"] + report["waiting_at_close"]
    assert report["failed"].get("SALE_CLOSED", 0) == report["waiting_at_close"] > 0
    assert report["accepted"] + report["promoted"] == SHARES + report["failed"].get("INSUFFICIENT_FUNDS", 0)
    assert set(report["failed"]) <= {"INSUFFICIENT_FUNDS", "SALE_CLOSED"}
    assert {buyer.attempts for buyer in end.load.buyers if buyer.waitlisted} == {1}
    assert report["statement"] == {
        "final": True,
        "sold": SHARES,
        "captured_minor": SHARES * end.seeded.price_minor,
        "refunded_minor": 0,
        "won_nothing": report["failed"],
    }
    assert report["audit_violations"] == []
    assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert (reports / "sale.png").read_bytes().startswith(b"\x89PNG")


async def test_a_recount_in_sql_and_redis_finds_the_promises_kept(
    sale: tuple[SaleEnd, list[str], Path], recount: Recount
) -> None:
    end, _, _ = sale
    sale_id = end.seeded.sale_id
    recount.shares(sale_id, SHARES)
    recount.outcomes(sale_id)
    recount.books()
    recount.identity(sale_id)
    recount.stock(sale_id, SHARES)
    recount.line(sale_id)
    confirmed = recount.rows(
        "purchase", "SELECT user_id FROM purchases WHERE sale_id = %s AND state = 'CONFIRMED'", sale_id
    )
    balances = dict(recount.rows("balance", "SELECT user_id, balance_minor FROM accounts"))
    owners = {user_id for (user_id,) in confirmed}
    for user_id, funds in end.seeded.funds_minor.items():
        assert balances[user_id] == funds - (end.seeded.price_minor if user_id in owners else 0)


PLANTS: dict[str, tuple[planted.Plant, tuple[str, str]]] = {
    "confirmed without a hold": (planted.confirmed_without_hold, ("I2", "no hold")),
    "sold without a purchase": (planted.sold_without_purchase, ("I2", "sold to none")),
    "failed with the money kept": (planted.failed_with_captured_hold, ("I2", "money kept")),
    "a share of nobody": (planted.share_of_nobody, ("I2", "numbers")),
    "an entry off balance": (planted.entry_off_balance, ("I3", "sum")),
    "held without a hold": (planted.held_without_hold, ("I3", "account")),
    "another request": (planted.other_request, ("I5", "id")),
    "a line served out of order": (planted.out_of_order, ("I8", "overtaken")),
    "the id of one who waited in vain": (planted.id_not_spent, ("I8", "units closed")),
    "the gate off by one": (planted.gate_off_by(available=1), ("I6", "sum gate")),
    "the gate shifted": (planted.gate_off_by(available=1, sold=-1), ("I6", "gate and book")),
}


@pytest.mark.parametrize("name", PLANTS)
async def test_the_audit_names_what_is_wrong(
    name: str, sale: tuple[SaleEnd, list[str], Path], clients: Clients, recount: Recount
) -> None:
    plant, expected = PLANTS[name]
    sale_id = sale[0].seeded.sale_id
    with plant(recount, sale_id):
        findings = await audit(clients)
    assert expected in {(item.promise, item.code) for item in findings.violations}
    assert (await audit(clients)).violations == ()


async def test_owners_who_want_their_money_back_make_room_for_whoever_waits(
    mesh_stack: MeshStack, recount: Recount, tmp_path: Path
) -> None:
    settings = SaleSettings(users=200, shares=40, poor=POOR, wait=0.5, refund=0.25, connections=50)
    end, broken = await sell(mesh_stack, tmp_path, settings)
    assert broken == []
    report = json.loads((tmp_path / "sale.json").read_text())
    assert (report["confirmed"], report["refunded"]) == (40, 10)
    assert report["statement"]["refunded_minor"] == 10 * end.seeded.price_minor
    assert report["statement"]["won_nothing"]["REFUNDED"] == 10
    recount.outcomes(end.seeded.sale_id)
    recount.books()
    recount.stock(end.seeded.sale_id, 40)
    recount.line(end.seeded.sale_id)


async def test_without_a_line_the_refused_try_again_by_hand(mesh_stack: MeshStack, tmp_path: Path) -> None:
    settings = SaleSettings(users=100, shares=40, poor=0.2, wait=0.0, connections=50)
    _, broken = await sell(mesh_stack, tmp_path, settings)
    assert broken == []
    report = json.loads((tmp_path / "sale.json").read_text())
    assert (report["confirmed"], report["waitlisted"], report["promoted"]) == (40, 0, 0)


async def test_the_audit_passes_in_the_middle_of_a_sale(
    mesh_stack: MeshStack, clients: Clients, tmp_path: Path
) -> None:
    settings = SaleSettings(users=1500, shares=1000, poor=POOR, wait=0.2, connections=200)
    selling = asyncio.create_task(sell(mesh_stack, tmp_path, settings))
    unfinished_seen = 0
    while not selling.done():
        findings = await audit(clients)
        assert findings.violations == ()
        unfinished_seen += any(item.state in ("RESERVED", "SETTLING") for item in findings.look.purchases)
    _, broken = await selling
    assert broken == []
    assert unfinished_seen > 0


async def test_the_audit_command_tells_each_promise_and_its_verdict(
    sale: tuple[SaleEnd, list[str], Path], mesh_stack: MeshStack, recount: Recount, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(mesh_stack.environment) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [text[:2] for text in lines[:8]] == ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8"]
    assert all(": kept (" in text for text in lines[:8])
    with planted.gate_off_by(sold=1)(recount, sale[0].seeded.sale_id):
        assert await run(mesh_stack.environment) == 1
    assert "I6 stock adds up: BROKEN, 2 found" in capsys.readouterr().out
