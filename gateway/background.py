"""Tasks that live as long as the process: none is lost silently, all stop together."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from mesh.logs import get_logger

log = get_logger(__name__)


class Background:
    """Holds tasks. The first that ends with an exception is logged and sets ``crashed``, upon which the process ends,
    for a supervisor to start it anew. Create inside the running loop."""

    def __init__(self) -> None:
        self.crashed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Starts ``work``; it may end by itself or be cancelled by whoever started it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("background task failed", task=task.get_name(), exc_info=error)
            if not self.crashed.done():
                self.crashed.set_result(error)

    async def stop(self) -> None:
        """Cancels all and waits until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
