"""``python -m inventory_svc migrate|serve``."""

import sys

from inventory_svc import process
from mesh.server import run_process

_VERBS = {"migrate": process.migrate, "serve": process.serve}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _VERBS:
        sys.stderr.write("usage: python -m inventory_svc migrate|serve\n")
        sys.exit(2)
    sys.exit(run_process(_VERBS[sys.argv[1]]))
