"""RabbitMQ connections: heartbeats of seconds, publishes that never hang."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractRobustConnection
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError

#: Seconds after which a dead peer is noticed, so that a dead worker's partition moves on.
_HEARTBEAT_S = 5


@asynccontextmanager
async def open_rabbit(url: str, *, name: str) -> AsyncIterator[AbstractRobustConnection]:
    """A connection that restores itself, its channels and its consumers after a broker restart."""
    connection = await aio_pika.connect_robust(
        url,
        heartbeat=_HEARTBEAT_S,
        timeout=10,
        reconnect_interval=1,
        client_properties={"connection_name": name},
    )
    try:
        yield connection
    finally:
        await connection.close()


async def publish_confirmed(
    exchange: AbstractExchange, routing_key: str, body: bytes, *, kind: str, timeout_s: float = 5.0
) -> None:
    """Publishes one persistent, mandatory message and waits for the broker's confirm.

    Raises UNAVAILABLE when it is not confirmed within ``timeout_s`` seconds (alarm, broker away) or was returned as
    unroutable. The channel must have been opened with publisher confirms and ``on_return_raises=True``.
    """
    message = aio_pika.Message(
        body, content_type="application/x-protobuf", type=kind, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
    )
    try:
        async with asyncio.timeout(timeout_s):
            await exchange.publish(message, routing_key, mandatory=True)
    except (
        aio_pika.exceptions.AMQPError,
        aio_pika.exceptions.DeliveryError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away") from error
    except (asyncio.InvalidStateError, RuntimeError) as error:
        # What aiormq raises for a channel that closed under the call.
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the message broker is away") from error
