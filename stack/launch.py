"""Becomes a service process: `python -m stack.launch ENVIRONMENT_FILE MODULE VERB`.

The secrets reach the service by its environment, read here from a file that only its owner can read: neither
a command line nor supervisord's configuration ever has one. Imports nothing of the project, to stay quick.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path


def main() -> None:
    """Replace this process by the service."""
    environment_file, module, verb = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    environment: dict[str, str] = json.loads(environment_file.read_text())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # A gateway holds a socket for each buyer; the usual soft limit of 1,024 is for programs that use select().
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.execve(sys.executable, [sys.executable, "-m", module, verb], environment)  # noqa: S606 - no shell wanted


if __name__ == "__main__":
    main()
