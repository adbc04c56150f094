"""Entry of the purchase processes, ``python -m purchase_svc migrate|serve|settle``, and of the operator's commands."""

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mesh.server import run_process
from purchase_svc import process

_USAGE = """usage: python -m purchase_svc migrate|serve|settle
       python -m purchase_svc dead-letters
       python -m purchase_svc replay-dead-letters [--most N]
       python -m purchase_svc parked
       python -m purchase_svc replay-parked [ID ...]
       python -m purchase_svc fail-parked ID ...
"""
_OPERATIONS = ("dead-letters", "replay-dead-letters", "parked", "replay-parked", "fail-parked")


def _process(verb: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
    if verb == "settle":
        # Only now: serving needs nothing of the settlement worker.
        from purchase_svc.settlement_process import settle

        return settle
    return {"migrate": process.migrate, "serve": process.serve}.get(verb)


def main(arguments: Sequence[str]) -> int:
    """Runs a process or a command until it ends; its exit code, 2 for a call that cannot be meant."""
    if arguments and arguments[0] in _OPERATIONS:
        from purchase_svc import operating

        return operating.main(arguments)
    work = _process(arguments[0]) if len(arguments) == 1 else None
    if work is None:
        sys.stderr.write(_USAGE)
        return 2
    return run_process(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
