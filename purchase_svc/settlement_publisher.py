"""Publishing to the settlement queue over a connection that is replaced as a whole after any failure."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import tracing
from mesh.errors import DomainError
from mesh.logs import get_logger
from mesh.rabbit import BROKER_ERRORS, close_rabbit, connect_rabbit, publish_confirmed
from purchase_svc.dead_letter import DeadLetter
from purchase_svc.settlement_queue import (
    DEAD_EXCHANGE,
    EXCHANGE,
    MESSAGE_TYPE,
    declare,
    encode,
    partition_key,
    queue_depths,
    retry_name,
)

log = get_logger(__name__)

#: Declaring 20 quorum queues on a fresh broker takes seconds.
_CONNECT_TIMEOUT_S = 30.0
#: How long a letter waits among the retries when the dead letters are full, seconds.
_FULL_WAIT_S = 30


def _away(error: BaseException | None = None) -> DomainError:
    away = DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away")
    away.__cause__ = error
    return away


async def _accepted(exchange: AbstractExchange, letter: DeadLetter) -> bool:
    """Publishes a letter, persistent, mandatory and confirmed; false when its queue has no room for it."""
    assert letter.partition is not None
    message = aio_pika.Message(letter.body, headers=letter.headers, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    try:
        await exchange.publish(message, partition_key(letter.partition), mandatory=True)
    except aio_pika.exceptions.PublishError:
        # Returned: there is no queue. A new connection declares it.
        raise
    except aio_pika.exceptions.DeliveryError:
        return False
    return True


class _Link:
    """A connection with its channel, closed once it is retired and nobody uses it any more."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self.channel = channel
        self.users = 0
        self.retired = False


class SettlementPublisher:
    """Publishes batches of purchases, persistent, mandatory and confirmed. Used as an async context manager.

    Entering it starts to connect and does not wait, so a process can start while RabbitMQ is away. After any failure
    the connection is given up and made anew, queues and bindings with it, at most every ``pause_s`` seconds; a
    self-restoring connection would leave publishes hanging meanwhile (aio-pika#556, #636).

    With ``declares`` false the queues are made by others, the settlement workers: its user needs no right to make or
    delete any. Until they are there, publishing raises UNAVAILABLE.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        declares: bool = True,
        in_flight_max: int = 64,
        timeout_s: float = 5.0,
        pause_s: float = 0.5,
    ) -> None:
        self._url = url
        self._name = name
        self._declares = declares
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._slots = asyncio.Semaphore(in_flight_max)
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._not_before = 0.0
        self._ended = False

    async def __aenter__(self) -> Self:
        self._start_connecting()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._link is not None:
            await close_rabbit(self._link.connection)
        if self._closing:
            await asyncio.wait(self._closing)

    async def publish(self, partition: int, ids: Sequence[uuid.UUID]) -> None:
        """Queues 1 to 500 purchases of one partition for settlement.

        Returns once the broker has confirmed. Raises UNAVAILABLE, within ``timeout_s`` seconds or, while the broker is
        known to be away, at once; the message may still have arrived, which does no harm.
        """
        await self._publish(EXCHANGE, partition, ids)

    async def publish_retry(self, partition: int, ids: Sequence[uuid.UUID], delay_s: float) -> None:
        """As ``publish``, but the partition sees them only after ``delay_s`` seconds, rounded up to 1, 5 or 30."""
        await self._publish(retry_name(delay_s), partition, ids)

    async def put_aside(self, letter: DeadLetter) -> None:
        """Puts a message among the dead letters. Returns once the broker has confirmed.

        When the dead letters are full, it waits among the retries instead and comes back to its partition after 30 s:
        nothing is lost, and the partition goes on meanwhile. Raises UNAVAILABLE as ``publish`` does; the letter may
        then be there all the same, and there twice when it is put aside again.
        """
        assert letter.partition is not None
        told = {
            "reason": letter.reason,
            "partition": letter.partition,
            "purchase_ids": [str(each) for each in letter.purchase_ids],
            "size_bytes": len(letter.body),
        }
        async with self._linked() as link, asyncio.timeout(self._timeout_s):
            dead = await link.channel.get_exchange(DEAD_EXCHANGE, ensure=False)
            if await _accepted(dead, letter):
                log.error("a dead letter", **told)
                return
            log.error("the dead letters are full", wait_s=_FULL_WAIT_S, **told)
            retries = await link.channel.get_exchange(retry_name(_FULL_WAIT_S), ensure=False)
            if not await _accepted(retries, letter):
                raise _away()

    async def depths(self) -> tuple[int, int]:
        """Messages that wait in all partitions and for retries, and dead letters. Raises UNAVAILABLE."""
        async with self._linked() as link, asyncio.timeout(self._timeout_s):
            channel = await link.connection.channel(publisher_confirms=False)
            try:
                return await queue_depths(channel)
            finally:
                await channel.close()

    async def _publish(self, exchange_name: str, partition: int, ids: Sequence[uuid.UUID]) -> None:
        body = encode(partition, ids)
        async with self._linked() as link:
            exchange = await link.channel.get_exchange(exchange_name, ensure=False)
            with tracing.publishing(exchange_name, ids) as sending:
                await publish_confirmed(
                    exchange,
                    partition_key(partition),
                    body,
                    kind=MESSAGE_TYPE,
                    headers=tracing.headers_of(sending),
                    timeout_s=self._timeout_s,
                )

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[_Link]:
        """A link for one use; gives it up when the use fails. Bounded in number and in the wait."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise _away(error) from error
        try:
            link = await self._usable()
            link.users += 1
            try:
                yield link
            except DomainError:
                self._retire(link)
                raise
            except BROKER_ERRORS as error:
                self._retire(link)
                raise _away(error) from error
            finally:
                link.users -= 1
                self._close_if_unused(link)
        finally:
            self._slots.release()

    async def _usable(self) -> _Link:
        if self._link is not None and (self._link.connection.is_closed or self._link.channel.is_closed):
            self._retire(self._link)
        if self._link is not None:
            return self._link
        if self._connecting is None:
            if self._ended or asyncio.get_running_loop().time() < self._not_before:
                raise _away()
            self._start_connecting()
        assert self._connecting is not None
        # Shielded and shared: connecting goes on for the next caller when this one gives up.
        done, _ = await asyncio.wait([self._connecting], timeout=self._timeout_s)
        if self._link is None:
            raise _away(None if not done or self._ended else next(iter(done)).exception())
        return self._link

    def _start_connecting(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add_done_callback(self._connected)

    def _connected(self, task: "asyncio.Task[_Link]") -> None:
        self._connecting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._link = task.result()
            log.info("connected to the message broker", connection=self._name)
            return
        self._not_before = asyncio.get_running_loop().time() + self._pause_s
        if isinstance(error, BROKER_ERRORS):
            log.warning("the message broker is away", connection=self._name, error=type(error).__name__)
        else:
            log.error("connecting to the message broker failed", connection=self._name, exc_info=error)

    async def _connect(self) -> _Link:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            connection = await connect_rabbit(self._url, name=self._name)
            try:
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                if self._declares:
                    await declare(channel)
            except BaseException:
                await close_rabbit(connection)
                raise
            return _Link(connection, channel)

    def _retire(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self._not_before = asyncio.get_running_loop().time() + self._pause_s
        link.retired = True
        self._close_if_unused(link)

    def _close_if_unused(self, link: _Link) -> None:
        if link.retired and link.users == 0:
            task = asyncio.get_running_loop().create_task(close_rabbit(link.connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
