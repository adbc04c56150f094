"""Runs a service's command with the environment of the running stack: `python -m stack.run KIND MODULE [ARGUMENT ...]`.

KIND says as which process's the environment is: inventory, balance, purchase, settlement or gateway. The secrets reach
the command by its environment, never by its command line.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from stack import environment
from stack.errors import StackError
from stack.replicas import SERVICE_KINDS
from stack.services import base_environment


def main() -> NoReturn:
    """Becomes the command; exit code 2 for a wrong call, 1 when the stack is not up."""
    if len(sys.argv) < 3 or sys.argv[1] not in SERVICE_KINDS:
        sys.stderr.write(f"usage: python -m stack.run {'|'.join(SERVICE_KINDS)} MODULE [ARGUMENT ...]\n")
        sys.exit(2)
    kind, command = sys.argv[1], sys.argv[2:]
    try:
        own = base_environment() | environment.for_service(kind, environment.load())
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    os.execve(sys.executable, [sys.executable, "-m", *command], own)  # noqa: S606 (no shell wanted)


if __name__ == "__main__":
    main()
