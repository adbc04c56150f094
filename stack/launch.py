"""Becomes a service process: `python -m stack.launch ENVIRONMENT_FILE MODULE VERB`.

The secrets reach the service by its environment, read here from a file that only its owner can read: neither
a command line nor supervisord's configuration ever has one. Imports nothing of the project, to stay quick.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

_RESTART_PAUSE_S = 1.0


def main() -> None:
    """Wait if the process was started a moment ago, then replace this process by the service."""
    environment_file, module, verb = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    _pause_between_restarts(environment_file.with_suffix(".started"))
    environment: dict[str, str] = json.loads(environment_file.read_text())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A gateway holds a socket for each buyer; the usual soft limit of 1,024 is for programs that use select().
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.execve(sys.executable, [sys.executable, "-m", module, verb], environment)  # noqa: S606 - no shell wanted


def _pause_between_restarts(started: Path) -> None:
    """Keep a service that cannot start from spinning, without ever giving it up."""
    try:
        age_s = time.time() - started.stat().st_mtime
    except FileNotFoundError:
        age_s = _RESTART_PAUSE_S
    if 0 <= age_s < _RESTART_PAUSE_S:
        time.sleep(_RESTART_PAUSE_S - age_s)
    started.touch()


if __name__ == "__main__":
    main()
