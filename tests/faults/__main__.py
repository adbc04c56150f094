"""The fault suite: `python -m tests.faults` (make faults).

Settings from the environment: SEED (printed; repeats the same choices), ONLY (faults whose name contains it), QUICK=1
(the part that is in `make test`). Writes reports/faults.json. Exit code 0: every fault happened, and no promise broke.
"""

import asyncio
import os
import random
import signal
import sys

import uvloop

from tests.faults.report import Report
from tests.faults.suite import all_faults, run_all


def main() -> int:
    """The process."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1_000_000))
    only, quick = os.environ.get("ONLY", ""), os.environ.get("QUICK") == "1"
    chosen = [fault for fault in all_faults() if only in fault.name and (fault.quick or not quick)]
    if not chosen:
        sys.stderr.write(f"no fault has {only!r} in its name\n")
        return 2
    report = Report(seed, sys.stdout)
    # Ended by whoever started it, it still takes down what it has brought up.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_all(chosen, seed, report))
    report.write()
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
