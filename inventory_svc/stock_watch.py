"""Streams of stock readings with the fingerprints of who holds units, each reading and its fingerprints of one moment.

One hub per watched sale reads the gate for all its subscribers. A subscriber has no queue but a slot in which changes
gather until it takes them, so a slow one costs bounded memory and gets fewer, later messages.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.sale import Stock
from inventory_svc.stock_gate import Change, StockGate
from mesh.background import end_tasks
from mesh.errors import DomainError
from mesh.identity import fingerprint
from mesh.logs import get_logger

log = get_logger(__name__)

#: Time between two readings of a gate: at most 20 a second, fewer when nothing has changed for a while, seconds. The
#: first change after a while is told by the script that makes it (QUIET_MS in lua/prelude.lua), so that nobody waits
#: for the slower reading, which is there for what a lost connection did not tell.
_BUSY_S, _IDLE_S, _IDLE_AFTER_S = 0.05, 0.1, 2.0
#: Pause before changes of other processes are listened to again, seconds.
_EDGES_PAUSE_S = 0.2
#: Longest silence of a stream, seconds; below the 250 ms of the contract by what a busy loop may add.
_SILENCE_S_MAX = 0.15
#: Age at which a reading is no longer shown, seconds: the hub hangs on Redis.
_READING_AGE_S_MAX = 0.5
#: Changes that gather for a slow subscriber before it is sent the whole set instead.
_PENDING_MAX = 20_000
#: Fingerprints in one message, 800 kB of them.
_MESSAGE_MAX = 100_000


@dataclass(frozen=True)
class Update:
    """One message of a stream. ``stock`` is None when the gate is unavailable, or more of the same set follows."""

    stock: Stock | None
    reset: bool = False
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()


class _Subscriber:
    def __init__(self, *, with_fingerprints: bool) -> None:
        self.with_fingerprints = with_fingerprints
        self.news = asyncio.Event()
        self.ended = False
        self.reset = True
        self._added: set[int] = set()
        self._removed: set[int] = set()

    def put(self, added: set[int], removed: set[int]) -> None:
        """Notes changes; what is added and removed again in between is not told at all."""
        if self.with_fingerprints and not self.reset:
            self._added, self._removed = (
                (self._added - removed) | (added - self._removed),
                (self._removed - added) | (removed - self._added),
            )
            if len(self._added) + len(self._removed) > _PENDING_MAX:
                self.put_reset()
        self.news.set()

    def put_reset(self) -> None:
        """Forgets what has gathered: the whole set is sent next."""
        self.reset = True
        self._added, self._removed = set(), set()
        self.news.set()

    def take(self, stock: Stock | None, known: "Counter[int]") -> Iterator[Update]:
        """The messages that bring the subscriber from what it was told last to now."""
        self.news.clear()
        if not self.with_fingerprints:
            yield Update(stock, reset=self.reset)
        elif self.reset:
            whole = tuple(known)
            parts = [whole[first : first + _MESSAGE_MAX] for first in range(0, len(whole), _MESSAGE_MAX)] or [()]
            for place, part in enumerate(parts):
                yield Update(stock if place == len(parts) - 1 else None, reset=place == 0, added=part)
        else:
            yield Update(stock, added=tuple(self._added), removed=tuple(self._removed))
        self.reset = False
        self._added, self._removed = set(), set()


class _Hub:
    """Reads one sale's gate and keeps who holds units of it."""

    def __init__(self, gate: StockGate, sale_id: str, stale: Callable[[str], None]) -> None:
        self._gate = gate
        self._sale_id = sale_id
        self._stale = stale
        self.subscribers: set[_Subscriber] = set()
        self.known: Counter[int] = Counter()
        self._holders: dict[str, int] = {}
        self._stock: Stock | None = None
        self._position = 0
        self._read_at = self._changed_at = 0.0
        self._urgent = asyncio.Event()
        self.stopped = False

    @property
    def stock(self) -> Stock | None:
        """The last reading, unless it is too old to be acted upon."""
        return self.stock_at(asyncio.get_running_loop().time())

    def stock_at(self, now: float) -> Stock | None:
        """As ``stock``; ``now`` is on the loop's clock, which is the monotonic one."""
        return self._stock if now - self._read_at < _READING_AGE_S_MAX else None

    def hint(self, available: int) -> None:
        """This process changed the stock. The change to or from zero is read and told at once."""
        if self._stock is None or (available == 0) != (self._stock.available == 0):
            self._urgent.set()

    def read_now(self) -> None:
        """A change that must not wait has been told of: it is read and passed on at once."""
        self._urgent.set()

    async def run(self) -> None:
        """Reads until stopped or cancelled; a cancellation alone can be lost (mesh.background.end_tasks)."""
        loop = asyncio.get_running_loop()
        while not self.stopped:
            began_at = loop.time()
            try:
                await self._read()
            except DomainError as error:
                self._lose(error)
            idle = began_at - self._changed_at > _IDLE_AFTER_S
            # From beginning to beginning, so that a reading that takes long does not make the next one late as well;
            # but one that takes longer than that leaves Redis and this loop as much time as it took.
            now = loop.time()
            pause_s = max((_IDLE_S if idle else _BUSY_S) - (now - began_at), min(now - began_at, _BUSY_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._urgent.wait()
            self._urgent.clear()

    async def _read(self) -> None:
        began_at = asyncio.get_running_loop().time()
        epoch, position = (self._stock.epoch, self._position) if self._stock else (0, 0)
        seen = await self._gate.observe(self._sale_id, epoch, position)
        if seen.changes is None:
            await self._start_over(seen.stock.epoch, seen.position)
            return
        added, removed = self._apply(seen.changes)
        if added or removed or seen.stock != self._stock:
            self._changed_at = began_at
            self._stock = seen.stock
            for subscriber in self.subscribers:
                subscriber.put(added, removed)
        self._position, self._read_at = seen.position, began_at

    async def _start_over(self, epoch: int, position: int) -> None:
        """Reads the whole set. It is not of one moment, so the changes since ``position`` are applied to it."""
        self._lose(None)
        holders = await self._gate.scan_holders(self._sale_id, epoch)
        began_at = asyncio.get_running_loop().time()
        seen = await self._gate.observe(self._sale_id, epoch, position)
        if seen.changes is None:
            # Recalibrated meanwhile, or more changes than the log keeps: the next turn begins again.
            return
        self._holders = {key: fingerprint(request_id) for key, request_id in holders.items()}
        self.known = Counter(self._holders.values())
        self._apply(seen.changes)
        self._stock, self._position, self._read_at, self._changed_at = seen.stock, seen.position, began_at, began_at
        for subscriber in self.subscribers:
            subscriber.put_reset()

    def _apply(self, changes: tuple[Change, ...]) -> tuple[set[int], set[int]]:
        """Keeps the set; the fingerprints that are new in it or gone from it. Several requests may share one."""
        before: dict[int, bool] = {}
        for change in changes:
            old = self._holders.pop(change.reservation_id, None)
            if old is not None:
                before.setdefault(old, True)
                self.known[old] -= 1
            if change.request_id is not None:
                new = self._holders[change.reservation_id] = fingerprint(change.request_id)
                before.setdefault(new, self.known[new] > 0)
                self.known[new] += 1
        for key in before:
            if self.known[key] <= 0:
                del self.known[key]
        added = {key for key, was in before.items() if not was and key in self.known}
        removed = {key for key, was in before.items() if was and key not in self.known}
        return added, removed

    def _lose(self, error: DomainError | None) -> None:
        """The gate cannot be read: says so at once, once."""
        if self._stock is None:
            return
        self._stock = None
        if error is not None:
            log.warning("the stock cannot be read", sale_id=self._sale_id, reason=error.reason_name)
            if error.reason == ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                self._stale(self._sale_id)
        for subscriber in self.subscribers:
            subscriber.news.set()


class StockWatch:
    """The streams of this process, at most ``watchers_max``; ``stale`` is told a sale whose gate went stale."""

    def __init__(self, gate: StockGate, *, watchers_max: int, stale: Callable[[str], None]) -> None:
        self._gate = gate
        self._watchers_max = watchers_max
        self._stale = stale
        self._watchers = 0
        self._closed = False
        self._hubs: dict[str, tuple[_Hub, asyncio.Task[None]]] = {}
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hint(self, sale_id: str, available: int) -> None:
        """Tells that this process has just changed a sale's stock."""
        if sale_id in self._hubs:
            self._hubs[sale_id][0].hint(available)

    def readings(self) -> list[Stock]:
        """The last readings of the sales that are watched, those too old to be shown left out; from any thread."""
        now = time.monotonic()
        readings = (hub.stock_at(now) for hub, _ in list(self._hubs.values()))
        return [stock for stock in readings if stock is not None]

    async def follow_edges(self) -> None:
        """Reads a watched stock at once when a script, of whichever process, tells that it has taken the last unit,
        brought back the first, changed counts that were quiet, or put a gate into service; for ever. Without it such a
        change is seen only at the next reading."""
        while True:
            try:
                async with contextlib.aclosing(self._gate.edges()) as edges:
                    async for sale_id in edges:
                        if sale_id in self._hubs:
                            self._hubs[sale_id][0].read_now()
            except DomainError as error:
                log.warning("changes of stock are not told", reason=error.reason_name)
            await asyncio.sleep(_EDGES_PAUSE_S)

    async def failure(self) -> None:
        """Waits until a hub fails unexpectedly, and raises what it raised."""
        await self._failure

    async def watch(self, sale_id: str, *, with_fingerprints: bool) -> AsyncIterator[Update]:
        """The present stock at once, then each change, and something at least every 250 ms.

        Raises OVERLOADED beyond ``watchers_max`` streams, and UNAVAILABLE when the service drains.
        """
        if self._closed:
            raise _stopping()
        if self._watchers >= self._watchers_max:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, metadata={"queued": str(self._watchers)})
        self._watchers += 1
        subscriber = _Subscriber(with_fingerprints=with_fingerprints)
        try:
            hub = self._hub(sale_id)
            hub.subscribers.add(subscriber)
            if hub.stock is not None:
                subscriber.news.set()
            while not subscriber.ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SILENCE_S_MAX):
                        await subscriber.news.wait()
                if not subscriber.ended:
                    for update in list(subscriber.take(hub.stock, hub.known)):
                        yield update
            raise _stopping()
        finally:
            self._watchers -= 1
            self._leave(sale_id, subscriber)

    def _hub(self, sale_id: str) -> _Hub:
        if sale_id not in self._hubs:
            hub = _Hub(self._gate, sale_id, self._stale)
            task = asyncio.get_running_loop().create_task(hub.run(), name=f"watch {sale_id}")
            task.add_done_callback(self._hub_ended)
            self._hubs[sale_id] = hub, task
        return self._hubs[sale_id][0]

    def _hub_ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _leave(self, sale_id: str, subscriber: _Subscriber) -> None:
        hub, task = self._hubs.get(sale_id, (None, None))
        if hub is not None and task is not None:
            hub.subscribers.discard(subscriber)
            if not hub.subscribers:
                del self._hubs[sale_id]
                hub.stopped = True
                task.cancel()

    async def close(self) -> None:
        """Ends every stream with UNAVAILABLE and takes no new ones."""
        self._closed = True
        tasks = [task for _, task in self._hubs.values()]
        for hub, _ in self._hubs.values():
            for subscriber in hub.subscribers:
                subscriber.ended = True
                subscriber.news.set()
        await end_tasks(tasks)
        if not self._failure.done():
            self._failure.cancel()


def _stopping() -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the service is stopping")
