"""supervisord, made to start again sooner what has ended: `python -m stack.supervisord -c FILE`.

By itself it looks after its processes once a second, and starts one that keeps ending at once after 1, 2, 3 ... s. Here
it looks ten times a second, and what has ended starts again at once, or a second after its last start if that is later:
a part that cannot start does not spin, and one that is killed again and again is never given up nor kept waiting.
"""

from __future__ import annotations

from typing import Any

from supervisor import supervisord
from supervisor.states import ProcessStates

_LOOK_S = 0.1
_START_PAUSE_S = 1.0


class PromptSupervisor(supervisord.Supervisor):  # type: ignore[misc]  # supervisor has no types
    """supervisord's main loop with the changes above."""

    def runforever(self) -> None:
        """Runs until the process is to end."""
        poller = self.options.poller
        poll = poller.poll
        poller.poll = lambda timeout_s: poll(min(timeout_s, _LOOK_S))
        super().runforever()

    def reap(self, *arguments: Any, **options: Any) -> None:
        """Notes which processes have ended. Called at every turn of the loop, before it starts any of them."""
        super().reap(*arguments, **options)
        for group in self.process_groups.values():
            for process in group.processes.values():
                if process.state == ProcessStates.BACKOFF:
                    process.delay = min(process.delay, process.laststart + _START_PAUSE_S)


if __name__ == "__main__":
    supervisord.Supervisor = PromptSupervisor
    supervisord.main()
