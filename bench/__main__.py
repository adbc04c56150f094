"""The benchmarks: `python -m bench` (make bench).

Settings from the environment: ONLY (part of the names of the measures wanted), ROUNDS (of each contest, by default 5).
Writes reports/bench.json and reports/bench.png. Exit code 0: every measure could be taken.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.load.process import LoadError
from bench.measures import accept, burst, flood, growth, mtls, overload, refuse, settle
from bench.peers.running import PeerError
from bench.picture import draw
from bench.reach import lines
from bench.seeding import SeedingError
from bench.server_figures import durability
from bench.site import open_site
from mesh.errors import DomainError

REPORT = Path(__file__).resolve().parents[1] / "reports" / "bench.json"
PICTURE = REPORT.with_suffix(".png")
MEASURES = (burst, refuse, accept, mtls, settle, flood, overload, growth)
_ROUNDS = 5


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def run(only: str, rounds: int) -> dict[str, Any]:
    """Takes the measures whose names contain ``only``, each on a site of its own."""
    report: dict[str, Any] = {"rounds": rounds}
    first = time.monotonic()
    for measure in MEASURES:
        if only not in measure.NAME:
            continue
        began = time.monotonic()
        _say(f"{measure.NAME}: bringing a stack up ...")
        async with open_site(replicas=getattr(measure, "REPLICAS", None)) as site:
            report["durability"] = await durability(site.environment)
            report[measure.NAME] = await measure.measure(site, rounds, _say)
        _say(f"{measure.NAME}: {time.monotonic() - began:.0f} s")
    report["took_s"] = round(time.monotonic() - first, 1)
    return report


def main() -> int:
    """The process."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    only, rounds = os.environ.get("ONLY", ""), int(os.environ.get("ROUNDS") or _ROUNDS)
    try:
        report = uvloop.run(run(only, rounds))
    except (LoadError, PeerError, SeedingError, DomainError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    draw(report, PICTURE)
    _say("")
    for line in lines(report):
        _say(line)
    _say(f"{report['took_s']:.0f} s; {REPORT.name} and {PICTURE.name} are in {REPORT.parent.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
