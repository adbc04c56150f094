"""PostgreSQL: pools, transactions and named queries.

No call to Redis, RabbitMQ or another service belongs inside a transaction: a connection held across a network call is
how pools starve.
"""

import asyncio
import random
import re
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import AdaptersMap
from psycopg.rows import TupleRow
from psycopg.types.array import ListDumper
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from mesh.errors import DomainError

T = TypeVar("T")
RV = TypeVar("RV")

#: Longest wait for one answer of the server, seconds, unless a caller is more patient; beyond it the connection is
#: given up. A line that swallows bytes gives no other sign: without this a statement on it would wait for ever.
_ANSWER_S_MAX = 8.0


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection on which no answer is awaited for longer than ``answer_s_max`` seconds; then it is closed, and what
    was asked ends with psycopg.OperationalError."""

    answer_s_max = _ANSWER_S_MAX

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """As psycopg's, with the bound."""
        try:
            return await super().wait(gen, interval, self.answer_s_max if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # The answer may still come: nobody else may be given this connection.
                self.pgconn.finish()
            raise


Pool = AsyncConnectionPool[Connection]

#: Longest wait for a free connection, seconds.
_CONNECTION_WAIT_S = 2.0
#: Longest run of one statement, longest wait for one lock, and longest pause within a transaction, milliseconds: bounds
#: that only a fault reaches. The server gives up before we do; one that cannot reach us must not keep our locks.
_STATEMENT_MS_MAX, _LOCK_MS_MAX, _IDLE_MS_MAX = 7_000, 5_000, 8_000
#: Tries of a transaction that loses to a concurrent one.
_ATTEMPTS_MAX = 5

#: Types of a column of a batch that ``_BatchColumnDumper`` writes itself.
_PLAIN_TYPES = {str, int, type(None)}


class _BatchColumnDumper(ListDumper):
    """Writes a list of text, whole numbers and NULLs as an SQL array ten times as fast as psycopg's own dumper (0.2
    instead of 2 us an element, a third of a batch's whole cost). Leaves any other list to it."""

    def dump(self, obj: list[Any]) -> Buffer | None:
        kinds = set(map(type, obj))
        if kinds == {int}:
            return f"{{{str(obj)[1:-1]}}}".encode()
        if kinds == {str}:
            text = '","'.join(obj)
            if text.count('"') == 2 * (len(obj) - 1) and "\\" not in text:
                return f'{{"{text}"}}'.encode()
        if not obj or not _PLAIN_TYPES.issuperset(kinds):
            return super().dump(obj)
        return f"{{{','.join(map(_array_element, obj))}}}".encode()


def _array_element(value: str | int | None) -> str:
    if type(value) is str:
        if '"' in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{value}"'
    return "NULL" if value is None else str(value)


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_dumper(list, _BatchColumnDumper)
    return adapters


_CONFLICTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    PoolClosed,
    TooManyRequests,
    # A standby, or a server that was set so: nothing was done, and it can be done again once that is over.
    psycopg.errors.ReadOnlySqlTransaction,
)


async def _check_connection(conn: Connection) -> None:
    """Raises when the connection is broken, so that the pool replaces it before anybody is given it.

    A server that ended has said so, or the kernel for it: then there is something to read on an idle connection. The
    pool's own check asks the server each time, which costs every transaction another round trip.
    """
    poll = select.poll()
    poll.register(conn.pgconn.socket, select.POLLIN)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(conn)


@asynccontextmanager
async def open_pool(url: str, *, name: str, size: int, waiting_max: int = 256) -> AsyncIterator[Pool]:
    """A pool of ``size`` connections in READ COMMITTED with autocommit, closed on leaving.

    At most ``waiting_max`` callers wait for a connection, each at most 2 s. Opens even while the server is away.
    """
    options = (
        f"-c statement_timeout={_STATEMENT_MS_MAX} -c lock_timeout={_LOCK_MS_MAX}"
        f" -c idle_in_transaction_session_timeout={_IDLE_MS_MAX} -c timezone=UTC"
        # Before a table was analyzed PostgreSQL takes the few rows of a partial index for half of it, and started two
        # processes to read none: 14 ms for each look for refunds, four times a second in the first minute of a sale.
        " -c max_parallel_workers_per_gather=0"
    )
    pool: Pool = AsyncConnectionPool(
        url,
        connection_class=Connection,
        min_size=size,
        max_size=size,
        max_waiting=waiting_max,
        timeout=_CONNECTION_WAIT_S,
        reconnect_timeout=5.0,
        check=_check_connection,
        open=False,
        name=name,
        kwargs={
            "autocommit": True,
            "application_name": name,
            "options": options,
            "connect_timeout": 3,
            # A peer that is gone without a word, or a line that is unplugged, milliseconds and seconds.
            "tcp_user_timeout": 4_000,
            "keepalives_idle": 3,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            # Prepared at the first use: every hot statement is one of a handful of named queries.
            "prepare_threshold": 0,
            "context": _adapters(),
        },
    )
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close(timeout=2.0)


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for single statements (autocommit). Raises UNAVAILABLE when PostgreSQL is away or the pool is full.

    On UNAVAILABLE the outcome of what was sent is unknown: repeat it, which every statement of the mesh allows.
    """
    try:
        async with pool.connection() as conn:
            yield conn
    except _CONFLICTS:
        raise
    except _AWAY as error:
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the database is away") from error


@asynccontextmanager
async def patience(conn: Connection, seconds: int) -> AsyncIterator[None]:
    """Within the transaction under way, lets each statement take so long: for audits that read everything."""
    await conn.execute(f"SET LOCAL statement_timeout = {seconds * 1000}".encode())
    conn.answer_s_max = seconds + 1.0
    try:
        yield
    finally:
        conn.answer_s_max = _ANSWER_S_MAX


async def in_transaction(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Runs ``work`` in one transaction and returns its result once committed.

    Repeats it, at most 5 times, when PostgreSQL ends it for a deadlock or serialization failure, so ``work`` must
    have no effect outside the transaction. Raises UNAVAILABLE as ``connection`` does.
    """

    async def transaction() -> T:
        async with connection(pool) as conn, conn.transaction():
            return await work(conn)

    return await _until_no_conflict(transaction)


async def run_statement(pool: Pool, query: LiteralString, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Runs one statement, which is a transaction of its own, and returns its rows, if it has any.

    One round trip instead of the three of ``in_transaction``; repeats and raises as that does.
    """

    async def statement() -> list[tuple[Any, ...]]:
        async with connection(pool) as conn:
            cursor = await conn.execute(query, parameters)
            return await cursor.fetchall() if cursor.description else []

    return await _until_no_conflict(statement)


async def _until_no_conflict(work: Callable[[], Awaitable[T]]) -> T:
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        try:
            return await work()
        except _CONFLICTS as error:
            if attempt == _ATTEMPTS_MAX:
                raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "too many concurrent changes") from error
            await asyncio.sleep(random.uniform(0.0, 0.01 * attempt))  # noqa: S311 (jitter, not a secret)
    raise AssertionError("unreachable")


class Queries:
    """The named queries of a folder of .sql files: each begins with a line ``-- name: do_this`` and is read as
    ``queries.do_this``. A name that does not exist raises AttributeError; one that occurs twice raises at load."""

    def __init__(self, folder: Path) -> None:
        self._texts: dict[str, LiteralString] = {}
        for path in sorted(folder.glob("*.sql")):
            for name, text in re.findall(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", path.read_text(), re.M | re.S):
                if name in self._texts:
                    raise ValueError(f"{path}: the query {name} is there twice")
                self._texts[name] = cast(LiteralString, text.strip())

    def __getattr__(self, name: str) -> LiteralString:
        try:
            return self._texts[name]
        except KeyError:
            raise AttributeError(f"no query is named {name}") from None
