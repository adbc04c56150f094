"""Wrong rows, planted behind the services' backs and taken away again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import redis
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from psycopg import sql

from tests.acceptance.recount import Recount

#: Plants something wrong into the sale of this id.
Plant = Callable[[Recount, str], AbstractContextManager[None]]


def connected(recount: Recount, database: str) -> psycopg.Connection:
    """A connection that may do anything: no trigger guards the ledger against it."""
    conn = psycopg.connect(recount.database_url(database), autocommit=True)
    conn.execute("SET session_replication_role = replica")
    return conn


def one_purchase(recount: Recount, sale_id: str, state: str) -> tuple[str, str]:
    """Id and user of a purchase in this state that got as far as a hold."""
    query = (
        "SELECT purchase_id::text, user_id FROM purchases WHERE sale_id = %s AND state = %s AND reason <> %s"
        " ORDER BY 1 LIMIT 1"
    )
    ((purchase_id, user_id),) = recount.rows("purchase", query, sale_id, state, ErrorReason.ERROR_REASON_SALE_CLOSED)
    return purchase_id, user_id


@contextmanager
def row_missing(recount: Recount, database: str, table: str, key: str, value: str) -> Iterator[None]:
    """Takes one row out and puts it back exactly as it was."""
    names = {"table": sql.Identifier(table), "key": sql.Identifier(key), "kept": sql.Identifier(f"kept_{table}")}
    with connected(recount, database) as conn:
        take = "CREATE TEMP TABLE {kept} AS SELECT * FROM {table} WHERE {key}::text = {value}"
        conn.execute(sql.SQL(take).format(**names, value=sql.Literal(value)))
        deleted = conn.execute(sql.SQL("DELETE FROM {table} WHERE {key}::text = %s").format(**names), [value])
        assert deleted.rowcount == 1
        try:
            yield
        finally:
            conn.execute(sql.SQL("INSERT INTO {table} SELECT * FROM {kept}").format(**names))


@contextmanager
def confirmed_without_hold(recount: Recount, sale_id: str) -> Iterator[None]:
    """Shares given away: the hold of a confirmed purchase is gone."""
    with row_missing(recount, "balance", "holds", "hold_id", one_purchase(recount, sale_id, "CONFIRMED")[0]):
        yield


@contextmanager
def sold_without_purchase(recount: Recount, sale_id: str) -> Iterator[None]:
    """A sold reservation that no purchase knows of."""
    with row_missing(recount, "purchase", "purchases", "purchase_id", one_purchase(recount, sale_id, "CONFIRMED")[0]):
        yield


@contextmanager
def entry_off_balance(recount: Recount, sale_id: str) -> Iterator[None]:
    """Money from nowhere: one side of a booking."""
    with connected(recount, "balance") as conn:
        conn.execute(
            "INSERT INTO ledger_entries (transfer_id, account, amount_minor, currency_code, kind, create_time)"
            " VALUES ('planted', 'world', 7, 'EUR', 'DEPOSIT', clock_timestamp())"
        )
        try:
            yield
        finally:
            conn.execute("DELETE FROM ledger_entries WHERE transfer_id = 'planted'")


@contextmanager
def held_without_hold(recount: Recount, sale_id: str) -> Iterator[None]:
    """Money kept from its owner by no hold."""
    _, user_id = one_purchase(recount, sale_id, "FAILED")
    with connected(recount, "balance") as conn:
        conn.execute("UPDATE accounts SET held_minor = held_minor + 5 WHERE user_id = %s", [user_id])
        try:
            yield
        finally:
            conn.execute("UPDATE accounts SET held_minor = held_minor - 5 WHERE user_id = %s", [user_id])


@contextmanager
def failed_with_captured_hold(recount: Recount, sale_id: str) -> Iterator[None]:
    """A purchase that failed, of which the money was kept."""
    purchase_id, _ = one_purchase(recount, sale_id, "FAILED")
    with connected(recount, "balance") as conn:
        conn.execute(
            "UPDATE holds SET state = 'CAPTURED', refusal_reason = NULL, expire_time = create_time,"
            " end_time = create_time WHERE hold_id = %s",
            [purchase_id],
        )
        try:
            yield
        finally:
            conn.execute(
                "UPDATE holds SET state = 'REFUSED', refusal_reason = 'INSUFFICIENT_FUNDS', expire_time = NULL"
                " WHERE hold_id = %s",
                [purchase_id],
            )


@contextmanager
def share_of_nobody(recount: Recount, sale_id: str) -> Iterator[None]:
    """A share taken from a buyer who paid for it."""
    purchase_id, _ = one_purchase(recount, sale_id, "CONFIRMED")
    with connected(recount, "inventory") as conn:
        found = conn.execute(
            "UPDATE share_numbers SET reservation_id = NULL WHERE reservation_id = %s RETURNING share_number",
            [purchase_id],
        ).fetchall()
        try:
            yield
        finally:
            for (number,) in found:
                conn.execute(
                    "UPDATE share_numbers SET reservation_id = %s WHERE sale_id = %s AND share_number = %s",
                    [purchase_id, sale_id, number],
                )


@contextmanager
def other_request(recount: Recount, sale_id: str) -> Iterator[None]:
    """A purchase whose id is not that of its request."""
    purchase_id, _ = one_purchase(recount, sale_id, "FAILED")
    query = "UPDATE purchases SET request_id = {} WHERE purchase_id = %s"
    with connected(recount, "purchase") as conn:
        conn.execute(sql.SQL(query).format(sql.SQL("request_id || '-planted'")), [purchase_id])
        try:
            yield
        finally:
            conn.execute(sql.SQL(query).format(sql.SQL("replace(request_id, '-planted', '')")), [purchase_id])


@contextmanager
def out_of_order(recount: Recount, sale_id: str) -> Iterator[None]:
    """The last in line was promoted before the first."""
    query = (
        "SELECT reservation_id::text, state, decision_number, end_time, acknowledged FROM waitlist WHERE sale_id = %s"
        " AND state = 'CLOSED' ORDER BY ticket DESC LIMIT 1"
    )
    ((key, *kept),) = recount.rows("inventory", query, sale_id)
    change = (
        "UPDATE waitlist SET state = %s, decision_number = %s, end_time = %s, acknowledged = %s"
        " WHERE reservation_id = %s"
    )
    with connected(recount, "inventory") as conn:
        conn.execute(change, ["PROMOTED", -1, kept[2], True, key])
        try:
            yield
        finally:
            conn.execute(change, [*kept, key])


@contextmanager
def id_not_spent(recount: Recount, sale_id: str) -> Iterator[None]:
    """Somebody whose wait has ended could buy again with the same request."""
    query = "SELECT reservation_id::text FROM waitlist WHERE sale_id = %s AND state = 'CLOSED' LIMIT 1"
    ((key,),) = recount.rows("inventory", query, sale_id)
    with row_missing(recount, "inventory", "reservations", "reservation_id", key):
        yield


def gate_off_by(**changes: int) -> Plant:
    """The gate's counters moved by so much."""

    @contextmanager
    def plant(recount: Recount, sale_id: str) -> Iterator[None]:
        with redis.Redis.from_url(recount.redis_url) as client:
            key = f"inventory:{{{sale_id}}}:gate"
            for field, change in changes.items():
                client.hincrby(key, field, change)
            try:
                yield
            finally:
                for field, change in changes.items():
                    client.hincrby(key, field, -change)

    return plant
