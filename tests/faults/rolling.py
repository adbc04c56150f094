"""Every service restarted under load, one process after the other: nobody is told more than to come again."""

import time
from collections.abc import Iterator

from tests.faults.faults import Fault
from tests.faults.history import COME_AGAIN
from tests.faults.run import Run, Scale
from tests.faults.traffic import Habits

_FINAL_ANSWERS = ("SOLD_OUT",)


async def _rolling_restart(run: Run) -> None:
    began = time.monotonic()
    for name in run.world.services:
        await run.world.off(run.world.stack.restart, name)
        run.effects[f"restart {name}"] = 1
    run.recovery_s["rolling restart of every process"] = time.monotonic() - began
    for event in run.history.events:
        fine = event.status in (200, 202, *COME_AGAIN) or event.reason in _FINAL_ANSWERS
        what = f"{event.key} was told {event.status} {event.reason} in a rolling restart"
        run.verdict.require("answers", fine or event.act in ("cancel", "refund"), what)


def faults() -> Iterator[Fault]:
    """The rolling restart."""
    # Nobody gives up, so by the documented policy everybody is decided in the end.
    scale = Scale(users=1_200, shares=900, spread_s=16.0, habits=Habits(give_up=0.0))
    yield Fault("rolling restart", "rolling restart", _rolling_restart, scale=scale)
