"""Gathers single requests into batches and hands each caller its own result."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls ``handle`` with up to ``batch_max`` items at a time, at most ``in_flight_max`` calls at once.

    ``handle`` must return one result per item in the same order; a batch for which it raises fails with that error for
    every caller in it. There is no lingering: while a call is under way the next batch gathers, so batches grow with
    the load and a lone request waits for nobody. At most ``queue_max`` items wait; beyond that ``submit`` raises
    OVERLOADED.
    A caller that is cancelled while it waits is dropped from its batch; one whose batch is under way is not.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        batch_max: int,
        in_flight_max: int,
        queue_max: int,
    ) -> None:
        self._handle = handle
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._queue_max = queue_max
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_scheduled = False
        # Asked for once: that costs a system call (Python 3.11).
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def queued(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Calls of ``handle`` under way."""
        return len(self._tasks)

    async def submit(self, item: Item) -> Result:
        """Waits for the item's result. Raises OVERLOADED at once when the queue is full, or what ``handle`` raised."""
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> "asyncio.Future[Result]":
        """As ``submit``, without waiting: the future of the item's result."""
        if len(self._waiting) >= self._queue_max:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, metadata={"queued": str(len(self._waiting))})
        loop = self._loop = self._loop or asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if not self._flush_scheduled and len(self._tasks) < self._in_flight_max:
            # One turn of the loop later, so that requests read from the sockets in this turn share a batch.
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._waiting and len(self._tasks) < self._in_flight_max:
            batch: list[tuple[Item, asyncio.Future[Result]]] = []
            while self._waiting and len(batch) < self._batch_max:
                item, future = self._waiting.popleft()
                if not future.done():
                    batch.append((item, future))
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._tasks.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._flush()

    async def _run(self, batch: "list[tuple[Item, asyncio.Future[Result]]]") -> None:
        try:
            results = await self._handle([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} got {len(results)} results")
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(
                        error if isinstance(error, Exception) else DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
                    )
                    # Whoever asked may be gone by now; an exception nobody fetches is not worth a log line.
                    future.exception()
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    async def drain(self) -> None:
        """Waits until nothing waits and nothing is under way. New items must have stopped coming."""
        while self._tasks or self._waiting:
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)
