"""Rebuilding a sale's gate from SQL, in the middle of a sale if need be, and noticing when that is needed.

The order is what makes it safe: stop the gate; bump the epoch, which refuses every INSERT of an older grant from then
on; only when that is committed, count; load under names of the new epoch; switch, if the server is still the same run
and no newer calibration is there. A transition committed after the count is followed by a gate move that waits for this
epoch (gate_moves.py).
"""

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.reservation_book import calibration_rows
from inventory_svc.sale import Sale, Stock, sale_not_found
from inventory_svc.sale_book import SQL, SaleBook, sale_of_row
from inventory_svc.stock_gate import LOAD_CHUNK, CalibrationCounts, StockGate
from mesh import failpoints
from mesh.background import end_tasks
from mesh.errors import DomainError
from mesh.logs import get_logger
from mesh.metrics import Metrics
from mesh.postgres import Connection, Pool, in_transaction

log = get_logger(__name__)

#: Tries of one recalibration that is overtaken by a restart of Redis or by another process.
_ATTEMPTS_MAX = 3
#: Sales rebuilt at once without having been asked for by a call. More than there are processes of this service, so that
#: a large sale keeps no small one waiting.
_AT_ONCE_MAX = 4
#: Least time between two rounds of the watch, however many calls report a gate, seconds.
_ROUND_PAUSE_S = 0.05
#: Longest pause before a sale that could not be rebuilt is tried again, seconds.
_RETRY_S_MAX = 10.0
#: Upper bounds of the times that are counted, seconds.
_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LETTERS = {"RESERVED": "R", "SOLD": "S", "RELEASED": "L", "WAITING": "W"}


@dataclass
class Count:
    """What SQL holds of a sale after its epoch was bumped, in the form in which the gate is loaded."""

    sale: Sale
    epoch: int
    reserved: int = 0
    sold: int = 0
    waiting: int = 0
    users: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    records: list[dict[str, str | int]] = field(default_factory=list)

    def add(self, rows: Iterable[tuple[str, str, str, int, str]]) -> None:
        """Counts some reservations, or some that wait in line: id, user, request id, quantity, state."""
        chunk: dict[str, str | int] = {}
        for reservation_id, user_id, request_id, quantity, state in rows:
            chunk[reservation_id] = f"{_LETTERS[state]}{quantity}\n{user_id}\n{request_id}"
            if state == "RESERVED":
                self.reserved += quantity
            elif state == "SOLD":
                self.sold += quantity
            elif state == "WAITING":
                self.waiting += 1
            else:
                continue
            self.users[user_id] += quantity
        self.records.append(chunk)

    @property
    def counts(self) -> CalibrationCounts:
        """What the gate is to hold. Raises INTERNAL when SQL holds more units than there are: nothing may be sold."""
        available = self.sale.terms.total - self.reserved - self.sold
        if available < 0:
            log.critical("more units are taken than there are", sale_id=self.sale.sale_id, available=available)
            raise DomainError(ErrorReason.ERROR_REASON_INTERNAL, "more units are taken than there are")
        records = sum(len(chunk) for chunk in self.records)
        return CalibrationCounts(available, self.reserved, self.sold, records, len(self.users), self.waiting)


@dataclass
class _Result:
    done: bool = False


class RecalibrationMetrics:
    """What is counted of recalibrations: done, overtaken (by a restart or by another process), failed."""

    def __init__(self, metrics: Metrics) -> None:
        self._ended = metrics.counts("flashsale_recalibrations", "Recalibrations of stock by result", ("result",))
        self._took = metrics.durations("flashsale_recalibration_seconds", "Time of those done", (), _BOUNDS_S)

    @contextlib.contextmanager
    def timed(self) -> Iterator[_Result]:
        """Counts the body, which says whether it was done."""
        began, result, ended = time.monotonic(), _Result(), "failed"
        try:
            yield result
            ended = "done" if result.done else "overtaken"
        finally:
            self._ended.add((ended,))
            if result.done:
                self._took.add((), time.monotonic() - began)


class Recalibrator:
    """Rebuilds gates, one at a time per sale in this process; a lease in SQL keeps processes from undoing each other.

    ``in_service`` is told a sale and its available units whenever a rebuilt gate comes into service.
    """

    def __init__(
        self,
        gate: StockGate,
        sales: SaleBook,
        pool: Pool,
        *,
        lease_ms: int,
        in_service: Callable[[str, int], None],
        metrics: RecalibrationMetrics,
    ) -> None:
        self._gate = gate
        self._sales = sales
        self._pool = pool
        self._lease_ms = lease_ms
        self._in_service = in_service
        self._metrics = metrics
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Stock | None]] = set()
        self._reported: set[str] = set()
        self._wake = asyncio.Event()
        self._at_once = asyncio.Semaphore(_AT_ONCE_MAX)
        self._retries: dict[str, tuple[int, float]] = {}

    def report(self, sale_id: str) -> None:
        """Notes that the sale's gate refused or that the fence refused its epoch: the watch looks at it at once."""
        self._reported.add(sale_id)
        self._wake.set()

    async def stop_gate(self, sale_id: str) -> None:
        """Stops the sale's gate if Redis can be reached; a change of the sale's state need not wait for it."""
        with contextlib.suppress(DomainError):
            await self._gate.close(sale_id)

    async def recalibrate(self, sale_id: str) -> Stock:
        """Rebuilds the sale's gate now and returns the stock it came into service with.

        Goes on to its end when the caller is cancelled. Raises SALE_NOT_FOUND; UNAVAILABLE when Redis or SQL is away;
        STOCK_RECALIBRATING when it was overtaken every time.
        """
        stock = await asyncio.shield(self._start(sale_id, asked_for=True))
        assert stock is not None
        return stock

    def _start(self, sale_id: str, *, asked_for: bool) -> "asyncio.Task[Stock | None]":
        task = asyncio.get_running_loop().create_task(self._run(sale_id, asked_for=asked_for))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[Stock | None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever asked may be gone; the error was logged where it arose.
            task.exception()

    async def _run(self, sale_id: str, *, asked_for: bool) -> Stock | None:
        lock = self._locks.setdefault(sale_id, asyncio.Lock())
        async with lock:
            for _ in range(_ATTEMPTS_MAX):
                if not asked_for and not await self._is_due(sale_id):
                    return None
                with self._metrics.timed() as result:
                    stock = await self._rebuild(sale_id, asked_for=asked_for)
                    result.done = stock is not None
                if stock is not None or not asked_for:
                    return stock
        raise DomainError(ErrorReason.ERROR_REASON_STOCK_RECALIBRATING, metadata={"sale_id": sale_id})

    async def _is_due(self, sale_id: str) -> bool:
        calibration = await self._sales.calibration(sale_id)
        return not calibration.under_way and (await self._gate.current_epochs([sale_id])) != [calibration.epoch]

    async def _rebuild(self, sale_id: str, *, asked_for: bool) -> Stock | None:
        run_id = await self._gate.close(sale_id)
        failpoints.hit("recalibration.closed")
        epoch = await self._bump(sale_id, asked_for=asked_for)
        if epoch is None:
            return None
        lease = _Lease(self._sales, sale_id, epoch, self._lease_ms)
        try:
            # Only now that the bump is committed: a move of a transition that the count does not see must already wait
            # for this epoch, or it would be applied to the gate before, which is about to be replaced.
            count = await self._count(sale_id, epoch)
            failpoints.hit("recalibration.counted")
            counts = count.counts
            for name, chunks in (("grants", count.records), ("users", _chunks(count.users))):
                await self._gate.load(sale_id, name, epoch, {"": ""})
                for chunk in chunks:
                    await lease.keep()
                    await self._gate.load(sale_id, name, epoch, chunk)
            failpoints.hit("recalibration.loaded")
            terms, is_open = count.sale.terms, count.sale.state.is_open
            switched = await self._gate.switch(
                sale_id, run_id=run_id, epoch=epoch, counts=counts, terms=terms, is_open=is_open
            )
            failpoints.hit("recalibration.switched")
        finally:
            # Also after a failure: whoever notices the closed gate may then begin at once.
            await self._sales.end_lease(sale_id, epoch)
        if not switched:
            log.warning("recalibration was overtaken", sale_id=sale_id, epoch=epoch)
            return None
        log.info("recalibrated", sale_id=sale_id, epoch=epoch, **counts.__dict__)
        self._in_service(sale_id, counts.available)
        return Stock(
            sale_id,
            counts.available,
            counts.reserved,
            counts.sold,
            terms.total,
            epoch,
            is_open,
            waiting=counts.waiting,
        )

    async def _bump(self, sale_id: str, *, asked_for: bool) -> int | None:
        """Takes the lease and bumps the epoch. None when somebody else is at it and nobody asked for this one."""

        async def bump(conn: Connection) -> int | None:
            # The lease before the epoch, everywhere.
            lease = await (await conn.execute(SQL.lock_lease, {"sale_id": sale_id})).fetchone()
            if lease is None:
                raise sale_not_found(sale_id)
            if lease[0] and not asked_for:
                return None
            bumped = await (await conn.execute(SQL.bump_epoch, {"sale_id": sale_id})).fetchone()
            assert bumped is not None
            await conn.execute(SQL.take_lease, {"sale_id": sale_id, "epoch": bumped[0], "lease_ms": self._lease_ms})
            return int(bumped[0])

        return await in_transaction(self._pool, bump)

    async def _count(self, sale_id: str, epoch: int) -> Count:
        async def counted(conn: Connection) -> Count:
            row = await (await conn.execute(SQL.sale_by_id, {"sale_id": sale_id})).fetchone()
            assert row is not None
            count = Count(sale_of_row(row), epoch)
            async for rows in calibration_rows(conn, sale_id):
                for first in range(0, len(rows), LOAD_CHUNK):
                    count.add(rows[first : first + LOAD_CHUNK])
            return count

        return await in_transaction(self._pool, counted)

    async def watch(self, *, period_ms: int) -> None:
        """Checks every gate periodically and at once when one is reported, and rebuilds what is not current."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_ms / 1000):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._round()
            except DomainError as error:
                log.warning("gates cannot be checked", reason=error.reason_name)
            await asyncio.sleep(_ROUND_PAUSE_S)

    async def _round(self) -> None:
        reported, self._reported = self._reported, set()
        watched = await self._sales.watched()
        epochs = await self._gate.current_epochs([sale.sale_id for sale in watched]) if watched else []
        stale = {
            sale.sale_id
            for sale, epoch in zip(watched, epochs, strict=True)
            if epoch != sale.epoch and not sale.under_way
        }
        # A closed sale of which nothing is reserved is not watched, but a call may have found its gate missing.
        stale |= reported - {sale.sale_id for sale in watched}
        # First those that somebody waits for; the others in any order, so that two processes begin with different ones.
        order = random.sample(sorted(stale), len(stale))
        order.sort(key=lambda sale_id: sale_id not in reported)
        await asyncio.gather(*(self._heal(sale_id) for sale_id in order))

    async def _heal(self, sale_id: str) -> None:
        now = asyncio.get_running_loop().time()
        failures, not_before = self._retries.get(sale_id, (0, 0.0))
        if now < not_before:
            return
        try:
            async with self._at_once:
                await asyncio.shield(self._start(sale_id, asked_for=False))
            self._retries.pop(sale_id, None)
        except DomainError as error:
            pause_s = min(_RETRY_S_MAX, 0.25 * 2**failures)
            self._retries[sale_id] = (min(failures + 1, 10), asyncio.get_running_loop().time() + pause_s)
            log.warning("recalibration failed", sale_id=sale_id, reason=error.reason_name, next_try_s=pause_s)

    async def drain(self, *, most_s: float) -> None:
        """Lets recalibrations under way end, so that their gates do not stay closed; cancels what takes longer."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=most_s)
            await end_tasks(late)


class _Lease:
    """Renews a lease while its holder is at work, so that it can be short: a dead holder's gate waits for its end."""

    def __init__(self, sales: SaleBook, sale_id: str, epoch: int, lease_ms: int) -> None:
        self._sales = sales
        self._sale_id = sale_id
        self._epoch = epoch
        self._lease_ms = lease_ms
        #: On the loop's clock. The count may have used most of the lease.
        self._renewed_at = float("-inf")

    async def keep(self) -> None:
        """Renews it when a third of it is over. Raises UNAVAILABLE."""
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at > self._lease_ms / 3000:
            self._renewed_at = now
            await self._sales.renew_lease(self._sale_id, self._epoch, self._lease_ms)


def _chunks(users: dict[str, int]) -> Iterable[dict[str, str | int]]:
    pairs = list(users.items())
    for first in range(0, len(pairs), LOAD_CHUNK):
        yield dict(pairs[first : first + LOAD_CHUNK])
