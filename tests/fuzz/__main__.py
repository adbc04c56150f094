"""`make fuzz MINUTES=n`: the fuzz tests again and again, each round from another seed, until the time is over or
something is found. MINUTES is 1 to 600, by default 5. SEED repeats one round."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
#: How much more than in a test run each round tries, and how long a round may take, s.
_TIMES, _ROUND_S_MAX = 10, 3_600


def minutes_of(environment: Mapping[str, str]) -> float:
    """How long to go on. Raises ValueError for anything but 1 to 600."""
    minutes = float(environment.get("MINUTES") or 5)
    if not 1 <= minutes <= 600:
        raise ValueError("MINUTES must be 1 to 600")
    return minutes


def main() -> int:
    """The exit code: 0 when nothing was found."""
    try:
        ends = time.monotonic() + 60 * minutes_of(os.environ)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    given = os.environ.get("SEED")
    rounds = 0
    while rounds == 0 or (time.monotonic() < ends and not given):
        seed = given or str(random.getrandbits(32))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--timeout=3000",
            f"--hypothesis-seed={seed}",
            "tests/fuzz",
        ]
        environment = {**os.environ, "FUZZ_TIMES": str(_TIMES)}
        code = subprocess.run(command, cwd=_ROOT, env=environment, timeout=_ROUND_S_MAX, check=False).returncode
        if code:
            sys.stderr.write(f"found after {rounds} rounds: make fuzz SEED={seed} repeats it\n")
            return 1
        rounds += 1
    sys.stdout.write(f"{rounds} rounds, nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
