"""Redis connections: bounded, without hidden retries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from redis.maint_notifications import MaintNotificationsConfig


class _Connection(Connection):
    """A connection that says ConnectionError when it is lost at the moment of sending.

    redis-py expects OSError then; uvloop raises RuntimeError for a transport that has just been closed.
    """

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*arguments, **options)
        except RuntimeError as error:
            raise ConnectionError("the connection was lost while sending") from error


@asynccontextmanager
async def open_redis(url: str, *, connections_max: int = 16, timeout_s: float = 1.0) -> AsyncIterator["Redis"]:
    """A client whose every command takes at most ``timeout_s`` seconds and is sent once.

    redis-py's own default sends a timed-out command up to ten times more; here the caller decides what may be repeated.
    A connection that the server has closed, or on which a reply is left, is replaced before it is used. Replies are
    bytes. Raises redis.RedisError; callers translate it where they use it.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        connection_class=_Connection,
        max_connections=connections_max,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        # Told to the server at each connection otherwise, which needs a right and two round trips.
        driver_info=None,
        # Notices of Redis Enterprise, on by default. With them the pool hands out a connection without looking whether
        # it is closed or holds a reply that nobody fetched, and may wait ten times longer than it was told.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    client = Redis.from_pool(pool)
    try:
        yield client
    finally:
        await client.aclose()
