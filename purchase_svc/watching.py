"""Watching purchases: one poller for all watchers, so that ten thousand of them cost one statement each look."""

import asyncio
import uuid
from collections.abc import AsyncGenerator

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.logs import get_logger
from purchase_svc.purchase import Purchase, PurchaseState
from purchase_svc.purchase_book import PurchaseBook

log = get_logger(__name__)

#: Longest pause after a look that failed.
_PAUSE_AFTER_FAILURE_S = 1.0


class _Watched:
    """A purchase with at least one watcher. Watchers wait for ``changed``; ``latest`` is replaced, never queued, so a
    slow watcher skips states and costs no memory."""

    def __init__(self, purchase: Purchase) -> None:
        self.latest = purchase
        self.watchers = 0
        self.changed = asyncio.Event()

    def show(self, purchase: Purchase) -> None:
        self.latest = purchase
        before, self.changed = self.changed, asyncio.Event()
        before.set()


class Watching:
    """Streams of purchases' states. ``run`` must be running. At most ``watches_max`` streams; beyond it OVERLOADED."""

    def __init__(self, book: PurchaseBook, *, watches_max: int, interval_ms: int) -> None:
        self._book = book
        self._watches_max = watches_max
        self._interval_s = interval_ms / 1000
        self._watched: dict[uuid.UUID, _Watched] = {}
        self._watches = 0
        self._some = asyncio.Event()
        self._draining = False

    @property
    def watches(self) -> int:
        """Streams that are open."""
        return self._watches

    async def watch(self, purchase_id: uuid.UUID, user_id: str = "") -> AsyncGenerator[Purchase, None]:
        """The purchase as it is now, then after each change of state that is seen; ends after a final state.

        Raises PURCHASE_NOT_FOUND, OVERLOADED, and UNAVAILABLE when the process drains.
        """
        self._refuse_when_draining()
        if self._watches >= self._watches_max:
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, metadata={"queued": str(self._watches)})
        self._watches += 1
        try:
            purchase = await self._book.get(purchase_id, user_id)
            yield purchase
            if purchase.state.final:
                return
            watched = self._watched.setdefault(purchase_id, _Watched(purchase))
            if watched.latest.update_time < purchase.update_time:
                watched.show(purchase)
            watched.watchers += 1
            self._some.set()
            try:
                async for change in self._changes(watched, purchase.state):
                    yield change
            finally:
                watched.watchers -= 1
                if watched.watchers == 0:
                    self._watched.pop(purchase_id, None)
        finally:
            self._watches -= 1

    async def run(self) -> None:
        """Looks at the watched purchases until cancelled. A failed look is repeated; watchers just wait longer."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._watched:
                self._some.clear()
                await self._some.wait()
            began = loop.time()
            pause_s = self._interval_s
            try:
                await self._look()
            except DomainError as error:
                log.warning("watched purchases could not be read", reason=error.reason_name)
                pause_s = _PAUSE_AFTER_FAILURE_S
            # At most half of the time is spent looking, however many watch.
            await asyncio.sleep(max(pause_s, loop.time() - began))

    def drain(self) -> None:
        """Ends all streams with UNAVAILABLE, and every new one."""
        self._draining = True
        for watched in self._watched.values():
            watched.show(watched.latest)

    async def _look(self) -> None:
        seen = {purchase_id: watched.latest.state for purchase_id, watched in self._watched.items()}
        for purchase in await self._book.get_changed(seen):
            watched = self._watched.get(purchase.purchase_id)
            if watched is not None:
                watched.show(purchase)

    async def _changes(self, watched: _Watched, seen: PurchaseState) -> AsyncGenerator[Purchase, None]:
        while True:
            changed = watched.changed
            if watched.latest.state != seen:
                purchase = watched.latest
                seen = purchase.state
                yield purchase
                if seen.final:
                    return
                continue
            self._refuse_when_draining()
            await changed.wait()

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "this process is ending, watch again")
