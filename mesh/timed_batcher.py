"""Batches of what several callers ask of another service, each until its own deadline."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.batcher import Batcher
from mesh.errors import DomainError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Least that a call is given, seconds: below it it would fail before it is sent, and with another error.
_TIMEOUT_S_MIN = 0.001


class _Call:
    """A batch under way, and how many still wait for it."""

    def __init__(self, task: "asyncio.Task[object]", callers: int) -> None:
        self.task = task
        self._callers = callers

    @property
    def waited_for(self) -> bool:
        """Whether anybody still waits."""
        return self._callers > 0

    def leave(self) -> None:
        """One caller has its answer or waits no longer. Once nobody does, the call is cancelled, if it is not over."""
        self._callers -= 1
        if self._callers == 0:
            self.task.cancel()


class _Entry(Generic[Item]):
    def __init__(self, item: Item, deadline: float) -> None:
        self.item = item
        self.deadline = deadline
        self.call: _Call | None = None


class TimedBatcher(Generic[Item, Result]):
    """A Batcher, which see, whose callers have deadlines.

    ``handle`` is given the items and the time, seconds, until the last of their deadlines: what it calls must end by
    then. Only for reads: a batch for which nobody waits any longer is broken off, wherever it is.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[Item], float], Awaitable[Sequence[Result]]],
        *,
        batch_max: int,
        in_flight_max: int,
        queue_max: int,
    ) -> None:
        self._handle = handle
        self._batcher: Batcher[_Entry[Item], Result] = Batcher(
            self._run, batch_max=batch_max, in_flight_max=in_flight_max, queue_max=queue_max
        )

    async def submit(self, item: Item, timeout_s: float) -> Result:
        """Waits for the item's result. Raises OVERLOADED at once when the queue is full, DEADLINE_EXCEEDED when
        ``timeout_s`` seconds have passed, or what ``handle`` raised. An item whose time is up before its batch is begun
        is in none."""
        entry = _Entry(item, asyncio.get_running_loop().time() + timeout_s)
        try:
            async with asyncio.timeout_at(entry.deadline):
                return await self._batcher.submit(entry)
        except TimeoutError as error:
            raise DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from error
        finally:
            if entry.call is not None:
                entry.call.leave()

    async def _run(self, entries: Sequence[_Entry[Item]]) -> Sequence[Result]:
        loop = asyncio.get_running_loop()
        left_s = max(_TIMEOUT_S_MIN, max(entry.deadline for entry in entries) - loop.time())
        task = asyncio.ensure_future(self._handle([entry.item for entry in entries], left_s))
        call = _Call(task, len(entries))
        for entry in entries:
            entry.call = call
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancelled() or call.waited_for:
                # It is this process that ends.
                task.cancel()
                raise
            raise DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, "nobody waits for it any longer") from None
