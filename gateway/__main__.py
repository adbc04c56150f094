"""Process entry: ``python -m gateway serve``."""

import sys

from gateway.process import serve
from mesh.server import run_process

_VERBS = {"serve": serve}


def main(arguments: list[str]) -> int:
    """Runs the verb; the exit code, 2 for a wrong one."""
    if len(arguments) != 1 or arguments[0] not in _VERBS:
        sys.stderr.write(f"usage: python -m gateway {'|'.join(_VERBS)}\n")
        return 2
    return run_process(_VERBS[arguments[0]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
