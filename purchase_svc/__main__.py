"""Entry of the purchase processes: ``python -m purchase_svc migrate|serve|settle``."""

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from mesh.server import run_process
from purchase_svc import process

_USAGE = "usage: python -m purchase_svc migrate|serve|settle\n"


def _main(verb: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
    if verb == "settle":
        # Only now: serving needs nothing of the settlement worker.
        from purchase_svc.settlement_process import settle

        return settle
    return {"migrate": process.migrate, "serve": process.serve}.get(verb)


if __name__ == "__main__":
    main = _main(sys.argv[1]) if len(sys.argv) == 2 else None
    if main is None:
        sys.stderr.write(_USAGE)
        sys.exit(2)
    sys.exit(run_process(main))
