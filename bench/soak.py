"""Hours in minutes: sale after sale at half of what the system can do, with buyers who leave: `python -m bench.soak`.

What the gateway remembers has bounds that hours of sales reach; here they are so low that the first third reaches them,
and what goes on growing after it has no bound.

Settings from the environment: MINUTES (by default 10). Watches memory and descriptors of every part, and writes
reports/soak.json. Exit code 0: the services' memory and descriptors are flat, nobody was answered wrongly, every
promise was kept.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.audit.auditing import audit
from bench.clients import call
from bench.load.plan import LoadPlan, purchases_at
from bench.load.process import LoadError
from bench.load.run import run_load
from bench.processor_time import descriptors, resident_mb
from bench.seeding import SeedingError, seed
from bench.site import Site, open_site
from mesh.errors import DomainError
from mesh.settings import SettingsError, read_settings, setting

REPORT = Path(__file__).resolve().parents[1] / "reports" / "soak.json"
#: One sale: half of the purchases/s that are settled, and many more who are told that it is sold out.
_USERS, _SHARES, _OFFERED_PER_S, _CONNECTIONS = 40_000, 3_500, 3_000.0, 500
_GONE_SHARE = 0.1
_SAMPLE_S = 5.0
#: Bounds of what is remembered: about as many as press Buy in three sales and get an answer beyond the door.
_BOUNDS = {"GATEWAY_TOKENS_CACHE_MAX": "10000", "GATEWAY_USERS_MAX": "10000", "GATEWAY_UNASKED_S": "30"}
#: Memory may grow by this from the first third to the last: caches that fill, and a heap that finds its size.
_GROWTH_MAX, _GROWTH_MB_MAX = 0.1, 10.0
_DESCRIPTORS_MAX = 20


@dataclass(frozen=True)
class SoakSettings:
    """How long."""

    minutes: float = setting("how long sales go on", default=10.0, minimum=0.5, maximum=600.0)


class Samples:
    """Memory and descriptors of every part, again and again."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.memory_mb: dict[str, list[float]] = {}
        self.descriptors: dict[str, list[int]] = {}

    def take(self) -> None:
        """Once. Blocks."""
        stack = self._site.stack
        for info in stack.all_info():
            if info.pid:
                self.memory_mb.setdefault(info.name, []).append(round(resident_mb(stack, info.name), 1))
                self.descriptors.setdefault(info.name, []).append(descriptors(stack, info.name))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.to_thread(self.take)
            await asyncio.sleep(_SAMPLE_S)

    def grown(self) -> list[str]:
        """The services that are not flat, in words."""
        found = []
        for name in self._site.stack.service_names:
            for what, values, slack in (
                ("memory", self.memory_mb[name], _GROWTH_MB_MAX),
                ("descriptors", [float(each) for each in self.descriptors[name]], _DESCRIPTORS_MAX),
            ):
                third = max(1, len(values) // 3)
                first, last = statistics.median(values[:third]), statistics.median(values[-third:])
                if last > first * (1 + _GROWTH_MAX) and last > first + slack:
                    found.append(f"{name}: {what} grew from {first:,.0f} to {last:,.0f}")
        return found


async def _sale(site: Site) -> dict[str, int]:
    seeded = await seed(site.clients, site.secret, users=_USERS, shares=_SHARES, poor=0.05)
    plan = LoadPlan(
        *purchases_at(site.environment["GATEWAY_URL"], seeded.sale_id),
        "",
        list(seeded.buyers),
        _CONNECTIONS,
        offered_per_s=_OFFERED_PER_S,
        gone_share=_GONE_SHARE,
    )
    results = await run_load(plan)
    await call(site.clients.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=seeded.sale_id))
    statuses = [buyer.first_status for buyer in results.buyers]
    return {
        "accepted": statuses.count(202),
        "sold_out": statuses.count(409),
        "left": statuses.count(0),
        "errors": results.errors,
        "shed": results.shed_429,
    }


async def run(settings: SoakSettings) -> dict[str, Any]:
    """Runs it; the report."""
    async with open_site(_BOUNDS) as site:
        samples = Samples(site)
        sampling = asyncio.create_task(samples.run())
        sales: list[dict[str, int]] = []
        began = time.monotonic()
        while time.monotonic() - began < settings.minutes * 60:
            sales.append(await _sale(site))
            memory = ", ".join(f"{name} {samples.memory_mb[name][-1]:.0f}" for name in site.stack.service_names)
            sys.stdout.write(f"{time.monotonic() - began:5.0f} s  sale {len(sales)}: {sales[-1]}; MB: {memory}\n")
            sys.stdout.flush()
        sampling.cancel()
        findings = await audit(site.clients)
        return {
            "minutes": settings.minutes,
            "sales": sales,
            "bounds": _BOUNDS,
            "memory_mb": samples.memory_mb,
            "descriptors": samples.descriptors,
            "grown": samples.grown(),
            "errors": sum(sale["errors"] for sale in sales),
            "audit_violations": [str(each) for each in findings.violations],
        }


def main() -> int:
    """The process."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        report = uvloop.run(run(read_settings(SoakSettings, "")))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (LoadError, SeedingError, DomainError) as error:
        sys.stderr.write(f"soak: {error}\n")
        return 1
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    wrong = [*report["grown"], *report["audit_violations"]]
    if report["errors"]:
        wrong.append(f"{report['errors']} errors")
    for text in wrong:
        sys.stdout.write(f"  {text}\n")
    sys.stdout.write("SOAK: " + ("not flat\n" if wrong else "flat, and every promise kept\n"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
