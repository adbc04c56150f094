"""Runs a whole flash sale against the running stack and judges it: `python -m bench.sale`.

Settings from the environment: USERS, SHARES, POOR (part of the users who cannot pay, 0 to 1), WAIT (part of the users
who join the waitlist when there is no share; with 0 the refused try again when one comes back), REFUND (part of the
owners who ask for their money back), RATE (the settlement rate that the workers were started with). The sale is closed
in the end, so that the line ends clearly. Writes reports/sale.json and reports/sale.png. Exit code 0: every promise
kept.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop
from flashsale.balance.v1 import balance_service_pb2 as balance

from bench.audit.auditing import audit, verdict_lines
from bench.clients import Clients, call, open_clients
from bench.load.plan import LoadPlan, LoadResults, purchases_at
from bench.load.process import LoadError, load_process
from bench.sale.display import Display
from bench.sale.ending import close, refund_some, state_all
from bench.sale.follow import Following, follow, read_summary
from bench.sale.picture import draw
from bench.sale.report import SaleEnd, broken_promises, figures, summary_lines
from bench.seeding import Seeded, SeedingError, seed
from mesh.errors import DomainError
from mesh.settings import SettingsError, read_settings, setting
from stack import environment
from stack.errors import StackError

REPORTS = Path(__file__).resolve().parent.parent / "reports"
#: What a sale may take beyond the time its settlement needs at the given rate, seconds, and by what factor.
_LIMIT_S, _LIMIT_FACTOR = 150.0, 2.0
#: Longest burst, seconds; who has no answer by then is an error. A machine busy with other work needs most of it.
_WAVE_S_MAX = 120.0


@dataclass(frozen=True)
class SaleSettings:
    """What kind of sale."""

    users: int = setting("users who press Buy at once", default=50_000, minimum=1, maximum=1_000_000)
    shares: int = setting("shares on sale", default=10_000, minimum=1, maximum=1_000_000)
    poor: float = setting("part of the users who cannot pay", default=0.05, minimum=0.0, maximum=1.0)
    wait: float = setting("part of the users who join the waitlist", default=0.05, minimum=0.0, maximum=1.0)
    refund: float = setting("part of the owners who want their money back", default=0.0, minimum=0.0, maximum=1.0)
    rate: float = setting("settlement rate of the workers, purchases/s", default=500.0, minimum=1.0)
    connections: int = setting("keep-alive connections of the load generator", default=2_000, minimum=1, maximum=20_000)

    @property
    def limit_s(self) -> float:
        """Longest time from the start to the last settlement, seconds. Each poor winner's share is sold once more."""
        purchases = min(self.users, self.shares) * (1.0 + self.refund) / max(0.05, 1.0 - self.poor)
        return _LIMIT_S + _LIMIT_FACTOR * purchases / self.rate


def _plan(seeded: Seeded, settings: SaleSettings, gateway_url: str) -> LoadPlan:
    where = purchases_at(gateway_url, seeded.sale_id)
    return LoadPlan(*where, "", list(seeded.buyers), settings.connections, wave_s_max=_WAVE_S_MAX)


async def _buy(
    clients: Clients,
    seeded: Seeded,
    plan: LoadPlan,
    limit_s: float,
    display: Display,
    afterwards: Callable[[], Awaitable[None]] | None,
) -> tuple[LoadResults, Following, str]:
    """The burst, the settlement with the promotions, or without a line the second wave, what is done ``afterwards``,
    and the close."""
    now = Following()
    by_hand = not any(buyer.waits for buyer in seeded.buyers)
    async with load_process(plan) as load:
        await load.wait_ready()
        now.started_at = time.monotonic()
        with display:
            await load.tell("start")
            missing = await follow(
                clients,
                seeded.sale_id,
                load,
                now,
                limit_s=limit_s,
                by_hand=by_hand,
                afterwards=afterwards,
                on_change=lambda: display.update(now),
            )
            display.update(now)
        await load.tell("finish")
        results = await load.results()
    missing = missing or await close(clients, seeded.sale_id, now)
    await read_summary(clients, seeded.sale_id, now)
    return results, now, missing


async def run_sale(
    settings: SaleSettings, values: Mapping[str, str], reports: Path, display: Display | None = None
) -> tuple[SaleEnd, list[str]]:
    """Runs one sale on the stack that ``values`` describe; how it ended, and each broken promise in words.

    Writes sale.json and sale.png to ``reports``. Raises SeedingError, LoadError or DomainError when it cannot be run.
    """
    display = display or Display(settings.users, settings.shares)
    async with open_clients(values) as clients:
        seeded = await seed(
            clients,
            values["GATEWAY_JWT_SECRET"],
            users=settings.users,
            shares=settings.shares,
            poor=settings.poor,
            wait=settings.wait,
        )
        refunds_asked = 0

        async def refund() -> None:
            nonlocal refunds_asked
            refunds_asked = await refund_some(
                clients, seeded.sale_id, values["GATEWAY_URL"], seeded.buyers, settings.refund
            )

        plan = _plan(seeded, settings, values["GATEWAY_URL"])
        afterwards = refund if settings.refund else None
        results, now, missing = await _buy(clients, seeded, plan, settings.limit_s, display, afterwards)
        statement = None if missing else await state_all(clients, seeded.sale_id)
        findings = await audit(clients, settings.rate)
        books = await call(clients.balance.CheckBooks, balance.CheckBooksRequest(beneficiary=seeded.sale_id))
    end = SaleEnd(
        seeded=seeded,
        load=results,
        now=now,
        missing=missing,
        balance_rate_max_per_s=books.holds_per_s_max,
        look=findings.look,
        audit_violations=[str(item) for item in findings.violations],
        refunds_asked=refunds_asked,
        statement=statement,
    )
    await asyncio.to_thread(_write_reports, end, reports)
    for text in (*summary_lines(end, settings.rate), *verdict_lines(findings)):
        sys.stdout.write(text + "\n")
    return end, broken_promises(end)


def _write_reports(end: SaleEnd, reports: Path) -> None:
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "sale.json").write_text(json.dumps(figures(end), indent=2) + "\n")
    draw(end, reports / "sale.png")


async def run(settings: SaleSettings, values: Mapping[str, str]) -> int:
    """Runs a sale and prints the verdict; the exit code."""
    sys.stdout.write(f"{settings.users:,} users will press Buy for {settings.shares:,} shares; opening accounts\n")
    sys.stdout.flush()
    try:
        end, broken = await run_sale(settings, values, REPORTS)
    except (SeedingError, LoadError) as error:
        sys.stdout.write(f"the sale could not be run: {error}\n")
        return 1
    except DomainError as error:
        sys.stdout.write(f"the sale could not be run: {error.reason_name}: {error.message}\n")
        return 1
    if broken:
        sys.stdout.write("VERDICT: broken promises\n" + "".join(f"  - {text}\n" for text in broken))
        return 1
    sold, unsold = "exactly what was there sold", end.seeded.shares - end.now.confirmed
    if unsold:
        sold = f"{unsold:,} shares left that nobody waited for"
    sys.stdout.write(f"VERDICT: everybody answered, {sold}, exactly the owners charged\n")
    return 0


def main() -> int:
    """The process."""
    # The load generator is started while channels are open; gRPC would remark on that in the middle of the progress.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        settings = read_settings(SaleSettings, "")
        values = environment.load()
    except (SettingsError, StackError) as error:
        sys.stderr.write(f"sale: {error}\n")
        return 2
    return uvloop.run(run(settings, values))
