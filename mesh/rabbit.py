"""RabbitMQ connections: heartbeats of seconds, publishes that never hang."""

import asyncio
import contextlib

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractExchange
from aiormq.abc import FieldTable
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError

#: Seconds between heartbeats. aiormq gives a silent peer up after (this + 1) x 3, the broker after twice this, so that
#: a dead worker's partition moves on.
_HEARTBEAT_S = 3


#: What a broker that is away or going away makes of a call. aiormq raises RuntimeError for a channel or connection that
#: closed under it.
BROKER_ERRORS = (aio_pika.exceptions.AMQPError, OSError, TimeoutError, RuntimeError)
_CLOSE_S_MAX = 2.0


class _Connection(aio_pika.Connection):
    """Is closed when it fails to connect. aio-pika's own would try to close itself whenever it is collected."""

    async def connect(self, timeout: float | None = None) -> None:
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


async def connect_rabbit(url: str, *, name: str, timeout_s: float = 5.0) -> AbstractConnection:
    """A connection that does not restore itself; after any failure a new one is made. Raises one of BROKER_ERRORS.

    On one that restores itself publishes can hang meanwhile (aio-pika#556, #636).
    """
    return await aio_pika.connect(
        url,
        heartbeat=_HEARTBEAT_S,
        timeout=timeout_s,
        client_properties={"connection_name": name},
        connection_class=_Connection,
    )


async def close_rabbit(connection: AbstractConnection) -> None:
    """Closes it, within 2 s, whether or not the broker still answers."""
    with contextlib.suppress(*BROKER_ERRORS):
        async with asyncio.timeout(_CLOSE_S_MAX):
            await connection.close()


async def publish_confirmed(
    exchange: AbstractExchange,
    routing_key: str,
    body: bytes,
    *,
    kind: str,
    headers: FieldTable | None = None,
    timeout_s: float = 5.0,
) -> None:
    """Publishes one persistent, mandatory message and waits for the broker's confirm.

    Raises UNAVAILABLE when it is not confirmed within ``timeout_s`` seconds (alarm, broker away) or was returned as
    unroutable. The channel must have been opened with publisher confirms and ``on_return_raises=True``.
    """
    message = aio_pika.Message(
        body,
        headers=headers,
        content_type="application/x-protobuf",
        type=kind,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
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
