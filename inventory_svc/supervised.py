"""Tasks that run as long as the service does, none of which may be lost silently."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from mesh.logs import get_logger

log = get_logger(__name__)

#: A task that has not ended so long after it was cancelled is cancelled again, seconds.
_CANCEL_AGAIN_S = 0.1
_CANCELS_IN_A_ROW = 5


async def end_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancels tasks until they have ended; what they raised is not raised here.

    Once is not enough: redis-py sends by asyncio.wait_for, which on Python 3.11 loses a cancellation that arrives
    together with its result (python/cpython#81839), here in three of a hundred cancelled commands. A task that does
    nothing but send can even be in step with the loop and lose each one; hence some in turns of the loop that follow
    each other, of which one meets it at another point.
    """
    pending = set(tasks)
    while pending:
        for _ in range(_CANCELS_IN_A_ROW):
            for task in pending:
                task.cancel()
            await asyncio.sleep(0)
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


class Supervised:
    """Tasks that run as long as the service; ``crash`` ends, with what was raised, as soon as one of them ends."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work``, which is never meant to end."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        error = task.exception() or RuntimeError(f"{task.get_name()} ended")
        log.critical("a background task failed", task=task.get_name(), exc_info=error)
        if not self._crash.done():
            self._crash.set_exception(error)

    async def crash(self) -> None:
        """Waits until a task ends and raises what it raised."""
        await asyncio.shield(self._crash)

    async def stop(self) -> None:
        """Cancels all tasks and waits for their end."""
        await end_tasks(self._tasks)
        if self._crash.done():
            self._crash.exception()
        else:
            self._crash.cancel()
