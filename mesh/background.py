"""Tasks beside the calls: none is lost silently, and all stop together."""

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


class Background:
    """Holds tasks. The first that ends as it should not is logged and sets ``crashed``, upon which the process ends,
    for a supervisor to start it anew. Create inside the running loop."""

    def __init__(self) -> None:
        self.crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Starts ``work``; it may end by itself or be cancelled by whoever started it, but not raise."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Starts ``work``, which must go on until it is cancelled."""
        task = self.start(work, name)
        task.add_done_callback(self._must_not_end)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._crash(task, error)

    def _must_not_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is None:
            self._crash(task, RuntimeError(f"{task.get_name()} ended"))

    def _crash(self, task: "asyncio.Task[None]", error: BaseException) -> None:
        log.critical("a background task failed", task=task.get_name(), exc_info=error)
        if not self.crashed.done():
            self.crashed.set_result(error)

    async def stop(self) -> None:
        """Cancels all and waits until they have ended."""
        await end_tasks(self._tasks)
