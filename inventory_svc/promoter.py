"""The promoter: hands available units to those who wait, and ends the line of a sale that is closed.

A release gives its units to the line in its own transaction (releasing.py). This is for units that become available
otherwise: a raised total, a recalibration, a unit that came back just before somebody joined, what was too little for
the first in line. Like a grant: units in Redis first, then SQL.
"""

import asyncio
import contextlib

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.stock_gate import SCRIPT_ITEMS_MAX, StockGate
from inventory_svc.waitlist import SERVING_STATES, UNITS_MAX, Line
from inventory_svc.waitlist_book import WaitlistBook
from mesh import failpoints
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Least time between two rounds, however often somebody wakes the promoter, seconds.
_ROUND_PAUSE_S = 0.02
#: Those in line whose wait one transaction ends when the sale is closed.
_CLOSED_AT_ONCE = 500
#: Such transactions in a row.
_CLOSED_PARTS = 4


class Promoter:
    """Serves the lines of all sales. ``moves`` lets the gates follow what closing a line ends."""

    def __init__(self, gate: StockGate, waitlist: WaitlistBook, moves: GateMoves, proofs: GrantProofs) -> None:
        self._gate = gate
        self._waitlist = waitlist
        self._moves = moves
        self._proofs = proofs
        self._woken: set[str] = set()
        self._wake = asyncio.Event()

    def wake(self, sale_id: str) -> None:
        """Has the sale's line looked at soon: somebody joined it, or units may be there for it."""
        self._woken.add(sale_id)
        self._wake.set()

    async def run(self, *, period_ms: int) -> None:
        """Serves lines that it is woken for, and periodically every one, until cancelled."""
        loop = asyncio.get_running_loop()
        all_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(all_at):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if loop.time() >= all_at:
                    all_at = loop.time() + period_ms / 1000
                    self._woken.clear()
                    for line in await self._waitlist.lines():
                        await self._serve(line)
                else:
                    await self._serve_woken()
            except DomainError as error:
                log.warning("lines cannot be served", reason=error.reason_name)
            await asyncio.sleep(_ROUND_PAUSE_S)

    async def _serve_woken(self) -> None:
        woken, self._woken = self._woken, set()
        for sale_id in woken:
            try:
                # Mostly there is nothing to hand out, which the gate tells for less than SQL would.
                stock = await self._gate.read(sale_id)
            except DomainError:
                # Woken again when it is in service, or seen by the next round of all.
                continue
            has_work = stock.waiting and (stock.available or not stock.open)
            line = await self._waitlist.line(sale_id) if has_work else None
            if line is not None:
                await self._serve(line)

    async def _serve(self, line: Line) -> None:
        try:
            if line.sale_state in SERVING_STATES:
                await self.promote(line)
            else:
                await self.close(line.sale_id)
        except DomainError as error:
            # Its gate is being rebuilt, or a server is away: its turn comes again, and the other sales' all the same.
            if error.reason != ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                log.warning("a line is served later", sale_id=line.sale_id, reason=error.reason_name)

    async def promote(self, line: Line) -> int:
        """Gives those first in line what is available, and completes promotions that were half done; how many were
        promoted. Raises UNAVAILABLE and STOCK_RECALIBRATING."""
        promoted = 0
        while True:
            # The first in line also when nothing is available: somebody may have been given units by a process that
            # died then. Where smaller requests overtake, such a one may be anywhere, and is left to the reaper.
            available = (await self._gate.read(line.sale_id)).available
            units = available if line.overtaking_allowed else UNITS_MAX
            first = await self._waitlist.first(line, units=units, most=SCRIPT_ITEMS_MAX)
            if not first:
                return promoted
            ids = [waiter.reservation_id for waiter in first]
            taken = await self._gate.promote(line.sale_id, ids, overtaking_allowed=line.overtaking_allowed)
            if not taken.reservation_ids:
                return promoted
            failpoints.hit("inventory.promoting")
            done = await self._waitlist.promote(line.sale_id, taken.epoch, taken.reservation_ids)
            failpoints.hit("inventory.promoted")
            if done is None:
                return promoted
            self._proofs.add(line.sale_id, taken.epoch, done.decided)
            promoted += len(done.promoted)
            if not done.promoted or len(taken.reservation_ids) < SCRIPT_ITEMS_MAX:
                return promoted

    async def close(self, sale_id: str) -> None:
        """Ends the wait of those first in line of a sale that is closed; the others' turn comes after the other sales'.
        Raises UNAVAILABLE."""
        for _ in range(_CLOSED_PARTS):
            moves = await self._waitlist.close_some(sale_id, _CLOSED_AT_ONCE)
            failpoints.hit("inventory.line_closed")
            await self._moves.follow(moves)
            if not moves:
                return
        self.wake(sale_id)
