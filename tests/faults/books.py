"""What the three databases and the gate hold of one sale, read with the auditor's rights and without the services: what
watches the services must not believe them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from redis.asyncio import Redis

#: Longest that one reading may take, seconds: a server that is away must not keep the watcher from the next.
_READ_S_MAX = 2.0
_MONEY = """
SELECT (SELECT count(*) FROM accounts WHERE NOT (0 <= held_minor AND held_minor <= balance_minor)),
       (SELECT coalesce(sum(amount_minor), 0) FROM ledger_entries),
       count(*) FILTER (WHERE captures <> 1 OR reversals > 1 OR (reversals = 1 AND kept <> 0)),
       array_agg(hold_id) FILTER (WHERE reversals > 0)
FROM (SELECT regexp_replace(transfer_id, '^reversal:', '') AS hold_id, sum(amount_minor) AS kept,
             count(*) FILTER (WHERE kind = 'CAPTURE') AS captures,
             count(*) FILTER (WHERE kind = 'REVERSAL') AS reversals
      FROM ledger_entries WHERE account = %s GROUP BY 1) AS of_hold
"""


@dataclass(frozen=True, slots=True)
class PurchaseRow:
    """A purchase as its database has it."""

    purchase_id: str
    user_id: str
    request_id: str
    state: str
    reason: int
    share_numbers: tuple[int, ...]
    cleanup_pending: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """A reservation as its database has it, with the share numbers it owns."""

    state: str
    quantity: int
    share_numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InLine:
    """A place in line as its database has it."""

    state: str
    ticket: int
    quantity: int
    #: Order in which the line's places were decided; 0 while it waits.
    decision: int


@dataclass(frozen=True)
class Snapshot:
    """Readings of one round, in the order purchases, holds, line, reservations, holds, purchases: what a purchase
    claims was so before the others were read, what a hold or a place in line claims before the reservations were, and
    what the second readings still claim was so meanwhile."""

    purchases: dict[str, PurchaseRow]
    #: Hold state by id.
    holds: dict[str, str]
    line: dict[str, InLine]
    reservations: dict[str, Unit]
    holds_after: dict[str, str]
    purchases_after: dict[str, PurchaseRow]
    #: Accounts whose held money is not between zero and their balance, and the sum of all entries.
    bad_accounts: int
    ledger_sum: int
    #: Holds of this sale of which other than one capture was booked, or other than at most its whole reversal.
    bad_bookings: int
    #: Holds of this sale of which a reversal was booked.
    reversed_bookings: frozenset[str]
    #: The gate's fields, empty while it is not there.
    gate: Mapping[str, str] = field(default_factory=dict)


class Books:
    """Reads the books of one sale. Every method raises psycopg.Error, RedisError, OSError or TimeoutError while a
    server is away. Used as an async context manager."""

    def __init__(self, environment: Mapping[str, str], sale_id: str) -> None:
        self._auditor = environment["POSTGRES_AUDITOR_URL"].rpartition("/")[0]
        self._redis_url = environment["REDIS_URL"]
        self._sale_id = sale_id
        self._connections: dict[str, psycopg.AsyncConnection[Any]] = {}
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> "Books":
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections.values():
            await connection.close()

    async def rows(self, database: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query of one database gives."""
        async with self._reading:
            reading = asyncio.create_task(self._fetch(database, query, parameters))
            done, _ = await asyncio.wait([reading], timeout=_READ_S_MAX)
            if not done:
                # Left behind: psycopg, when cancelled, waits for a server that may never answer.
                self._connections.pop(database, None)
                reading.cancel()
                raise TimeoutError
            return reading.result()

    async def _fetch(self, database: str, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        connection = self._connections.get(database)
        if connection is None or connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                f"{self._auditor}/{database}", autocommit=True, connect_timeout=2
            )
            await connection.set_read_only(True)
            self._connections[database] = connection
        return await (await connection.execute(query.encode(), parameters)).fetchall()

    async def snapshot(self) -> Snapshot:
        """One round."""
        purchases = await self.purchases()
        holds = await self.holds()
        line = await self.line()
        reservations = await self.reservations()
        holds_after = await self.holds()
        purchases_after = await self.purchases()
        money = await self.rows("balance", _MONEY, f"sale:{self._sale_id}")
        bad_accounts, ledger_sum, bad_bookings, reversals = money[0]
        return Snapshot(
            purchases=purchases,
            holds=holds,
            line=line,
            reservations=reservations,
            holds_after=holds_after,
            purchases_after=purchases_after,
            bad_accounts=bad_accounts,
            ledger_sum=int(ledger_sum),
            bad_bookings=bad_bookings,
            reversed_bookings=frozenset(reversals or ()),
            gate=await self.gate(),
        )

    async def purchases(self) -> dict[str, PurchaseRow]:
        """All purchases of the sale."""
        rows = await self.rows(
            "purchase",
            "SELECT purchase_id::text, user_id, request_id, state, reason, share_numbers, cleanup_pending"
            " FROM purchases WHERE sale_id = %s",
            self._sale_id,
        )
        return {row[0]: PurchaseRow(row[0], row[1], row[2], row[3], row[4], tuple(row[5]), row[6]) for row in rows}

    async def holds(self) -> dict[str, str]:
        """The state of each hold made for the sale."""
        return dict(
            await self.rows("balance", "SELECT hold_id::text, state FROM holds WHERE beneficiary = %s", self._sale_id)
        )

    async def line(self) -> dict[str, InLine]:
        """Everybody who ever joined the sale's line."""
        rows = await self.rows(
            "inventory",
            "SELECT reservation_id::text, state, ticket, quantity, coalesce(decision_number, 0) FROM waitlist"
            " WHERE sale_id = %s",
            self._sale_id,
        )
        return {row[0]: InLine(*row[1:]) for row in rows}

    async def reservations(self) -> dict[str, Unit]:
        """All reservations of the sale."""
        rows = await self.rows(
            "inventory",
            "SELECT r.reservation_id::text, r.state, r.quantity,"
            " coalesce(array_agg(s.share_number ORDER BY s.share_number)"
            "   FILTER (WHERE s.share_number IS NOT NULL), '{}')"
            " FROM reservations r LEFT JOIN share_numbers s ON s.reservation_id = r.reservation_id"
            " WHERE r.sale_id = %s GROUP BY 1, 2, 3",
            self._sale_id,
        )
        return {row[0]: Unit(row[1], row[2], tuple(row[3])) for row in rows}

    async def gate(self) -> dict[str, str]:
        """The fields of the sale's gate, read in one step; not in service if it was made for another run of Redis."""
        async with asyncio.timeout(_READ_S_MAX):
            async with Redis.from_url(self._redis_url, decode_responses=True) as client:
                pipeline = client.pipeline(transaction=True)
                pipeline.hgetall(f"inventory:{{{self._sale_id}}}:gate")
                pipeline.info("server")
                fields, server = await pipeline.execute()
                current = {} if fields.get("run_id") == server["run_id"] else {"serving": "0"}
                return {str(name): str(value) for name, value in (fields | current).items()}

    async def waiting_in_gate(self) -> set[str]:
        """Ids of the requests that wait by the records of the gate in service. A recalibrator that died leaves records
        of another epoch behind for a while, which nobody reads."""
        epoch = (await self.gate()).get("epoch", "")
        return {key for key, record in (await self._records(epoch)).items() if record.startswith("W")}

    async def records_in_gate(self) -> dict[str, str]:
        """Redis's record of each reservation, of whatever epoch and whether or not it is in service."""
        return await self._records("*")

    async def _records(self, epoch: str) -> dict[str, str]:
        async with asyncio.timeout(_READ_S_MAX):
            async with Redis.from_url(self._redis_url, decode_responses=True) as client:
                found: dict[str, str] = {}
                async for key in client.scan_iter(f"inventory:{{{self._sale_id}}}:grants:{epoch}"):
                    records = await client.hgetall(key)
                    found.update((str(each), str(record)) for each, record in records.items())
                # Of a calibration without any reservation there is one field that names none.
                found.pop("", None)
                return found

    async def moves_left(self) -> int:
        """Transitions that the gate has not followed yet."""
        return int(
            (await self.rows("inventory", "SELECT count(*) FROM gate_moves WHERE sale_id = %s", self._sale_id))[0][0]
        )
