"""Consumes the settlement partitions, as many as the broker gives this worker, and hands them to lanes.

Each partition has a single active consumer: of several workers one gets it, and another when that one dies. All
workers subscribe to all partitions, in random order, so that workers started together share them.
A session is one connection with its consumers. Whatever breaks it (broker restart, a deleted queue, a lost channel)
ends it as a whole and a new one begins, because self-restoring consumers do not always come back (aio-pika#231, #632);
what was not acked is delivered again.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import tracing
from mesh.errors import DomainError
from mesh.logs import get_logger
from mesh.rabbit import BROKER_ERRORS, close_rabbit, connect_rabbit
from purchase_svc.dead_letter import DeadLetter, put_aside
from purchase_svc.settlement_lane import Delivery, Lane
from purchase_svc.settlement_queue import PARTITIONS, declare, decode_from, queue_name

log = get_logger(__name__)

_DEPTHS_TIMEOUT_S = 5.0
_UNSUBSCRIBE_TIMEOUT_S = 2.0
#: Declaring 20 quorum queues on a fresh broker takes seconds.
_SUBSCRIBE_TIMEOUT_S = 30.0
_RECONNECT_PAUSE_S = 0.5


class LaneError(Exception):
    """A lane ended by an error that should not be possible; the process is to be started anew."""


class SettlementWorker:
    """Settles what the queues hold until stopped. Partition p belongs to lane p mod ``lanes`` of a session.

    At most ``prefetch`` messages of a partition are in hand, so that a lane's memory is bounded. What cannot be parsed
    is given to ``put_aside``, which raises DomainError when it cannot keep it.
    """

    def __init__(
        self,
        url: str,
        new_lane: Callable[[], Lane],
        put_aside: Callable[[DeadLetter], Awaitable[None]],
        *,
        lanes: int,
        prefetch: int,
        grace_s: float,
    ) -> None:
        self._url = url
        self._new_lane = new_lane
        self._put_aside = put_aside
        self._lanes = lanes
        self._prefetch = prefetch
        self._grace_s = grace_s
        self._stopping = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._working: Sequence[Lane] = ()

    def stop(self) -> None:
        """Ends ``run`` after the batches under way."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until stopped, session after session. Raises LaneError."""
        while not self._stopping.is_set():
            try:
                await self._session()
            except BROKER_ERRORS as error:
                log.warning("no session with the message broker", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECT_PAUSE_S):
                    await self._stopping.wait()

    def partitions_in_hand(self) -> list[int]:
        """Partitions of which this worker has messages that are not acked yet."""
        return sorted({partition for lane in self._working for partition in lane.partitions})

    async def ready_messages(self, partitions: Sequence[int]) -> dict[int, int]:
        """Messages that wait in the partitions' queues and are given to nobody. Raises UNAVAILABLE."""
        connection = self._connection
        if connection is None:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away")
        try:
            async with asyncio.timeout(_DEPTHS_TIMEOUT_S):
                channel = await connection.channel(publisher_confirms=False)
                async with channel:
                    queues = [await channel.declare_queue(queue_name(each), passive=True) for each in partitions]
        except BROKER_ERRORS as error:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away") from error
        counts = [queue.declaration_result.message_count or 0 for queue in queues]
        return dict(zip(partitions, counts, strict=True))

    async def _session(self) -> None:
        connection = await connect_rabbit(self._url, name="settlement worker")
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        lanes = [self._new_lane() for _ in range(self._lanes)]
        tasks = [asyncio.get_running_loop().create_task(lane.run()) for lane in lanes]
        try:
            async with asyncio.timeout(_SUBSCRIBE_TIMEOUT_S):
                channel = await connection.channel(publisher_confirms=False)
                tags = await self._subscribe(channel, lanes, lost)
            self._connection, self._working = connection, lanes
            log.info("consuming", partitions=PARTITIONS, lanes=self._lanes)
            await self._until_ended(lost, tasks)
            if not lost.is_set():
                await _unsubscribe(channel, tags)
        finally:
            self._connection, self._working = None, ()
            try:
                await self._end_lanes(lanes, tasks)
            finally:
                await close_rabbit(connection)

    async def _end_lanes(self, lanes: Sequence[Lane], tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Lets the batches under way finish, for at most the grace time."""
        for lane in lanes:
            lane.stop()
        done, late = await asyncio.wait(tasks, timeout=self._grace_s)
        if late:
            log.warning("batches broken off", batches=len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise LaneError("a lane broke") from error

    async def _subscribe(self, channel: AbstractChannel, lanes: Sequence[Lane], lost: asyncio.Event) -> dict[int, str]:
        """Begins to consume every partition; the consumer tags by partition."""
        channel.close_callbacks.add(lambda *_: lost.set())
        underlay = await channel.get_underlay_channel()
        # The broker ends a consumer whose queue is deleted; the next session declares it again.
        underlay.on_consumer_cancel_callbacks.add(lambda _: lost.set())
        await declare(channel)
        await channel.set_qos(prefetch_count=self._prefetch)
        tags = {}
        for each in random.sample(range(PARTITIONS), PARTITIONS):
            queue = await channel.get_queue(queue_name(each), ensure=False)
            deliver = partial(self._deliver, partition=each, lane=lanes[each % len(lanes)], lost=lost)
            tags[each] = await queue.consume(deliver)
        return tags

    async def _deliver(
        self, message: AbstractIncomingMessage, *, partition: int, lane: Lane, lost: asyncio.Event
    ) -> None:
        """Hands one message to its lane; what cannot be parsed goes to the dead letters."""
        ack = partial(_ack, message, lost)
        try:
            ids = decode_from(partition, message.body).purchase_ids
        except ValueError as error:
            letter = put_aside(
                message.body,
                str(error),
                partition,
                datetime.now(UTC),
                headers=message.headers,
                message_id=message.message_id,
                kind=message.type,
            )
            try:
                await self._put_aside(letter)
            except DomainError:
                # It stays with the broker, which delivers it again to the next session.
                log.warning("a dead letter waits", partition=partition, reason=letter.reason)
                lost.set()
                return
            await ack()
            return
        lane.add(Delivery(partition, ids, ack, tracing.parents_in(message.headers)))

    async def _until_ended(self, lost: asyncio.Event, tasks: Sequence["asyncio.Task[None]"]) -> None:
        """Waits until the session is lost, the worker is to stop, or a lane broke."""
        waits = [asyncio.ensure_future(event.wait()) for event in (lost, self._stopping)]
        try:
            await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()


async def _unsubscribe(channel: AbstractChannel, tags: dict[int, str]) -> None:
    """Takes no more messages, so that other workers get the partitions."""
    with contextlib.suppress(*BROKER_ERRORS):
        async with asyncio.timeout(_UNSUBSCRIBE_TIMEOUT_S):
            for each, tag in tags.items():
                queue = await channel.get_queue(queue_name(each), ensure=False)
                await queue.cancel(tag)


async def _ack(message: AbstractIncomingMessage, lost: asyncio.Event) -> None:
    """Acks. If the channel is gone, the session ends and the message is delivered again."""
    try:
        await message.ack()
    except BROKER_ERRORS:
        lost.set()
