"""The dead letters as an operator goes through them: each at most once, and back in its place unless it is removed.

What is taken stays with this connection until it is removed or the box is closed, so a command that is broken off loses
nothing. Nobody else sees a letter while it is taken.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.rabbit import BROKER_ERRORS, close_rabbit, connect_rabbit
from purchase_svc.dead_letter import DeadLetter, read
from purchase_svc.settlement_queue import DEAD

#: Declaring 20 quorum queues on a fresh broker takes seconds.
_OPEN_TIMEOUT_S = 30.0
_STEP_TIMEOUT_S = 5.0


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except BROKER_ERRORS as error:
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away") from error


class DeadLetterBox:
    """The dead letters that were there when the box was opened. Every method raises UNAVAILABLE."""

    def __init__(self, queue: AbstractQueue) -> None:
        self._queue = queue
        #: Letters that nobody else had taken when the box was opened.
        self.count = queue.declaration_result.message_count or 0

    async def letters(self, most: int) -> AsyncIterator[tuple[DeadLetter, AbstractIncomingMessage]]:
        """Takes letters from the oldest on, at most ``most``, each with what ``remove`` needs."""
        for _ in range(min(most, self.count)):
            with _unavailable():
                message = await self._queue.get(fail=False, timeout=_STEP_TIMEOUT_S)
            if message is None:
                return
            yield read(message.body, message.headers), message

    async def remove(self, taken: AbstractIncomingMessage) -> None:
        """Removes a letter that was taken. It may come back if the broker goes away at this moment."""
        with _unavailable():
            async with asyncio.timeout(_STEP_TIMEOUT_S):
                await taken.ack()


@asynccontextmanager
async def open_dead_letters(url: str) -> AsyncIterator[DeadLetterBox]:
    """The box; when it is left, all that was taken and not removed is back in its place.

    Raises UNAVAILABLE, also while no settlement worker has made the queue yet.
    """
    with _unavailable():
        connection = await connect_rabbit(url, name="dead letters")
    try:
        with _unavailable():
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                channel = await connection.channel(publisher_confirms=False)
                queue = await channel.declare_queue(DEAD, passive=True)
        yield DeadLetterBox(queue)
    finally:
        await close_rabbit(connection)
