"""Tells the gate which grants have their row, a moment after the caller has been answered."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from inventory_svc.stock_gate import LOAD_CHUNK, StockGate
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Proofs kept at most. One that is lost costs the reaper a look at the row, nothing else.
_PENDING_MAX = 100_000
_PERIOD_S = 0.1


class GrantProofs:
    """Gathers ids whose rows are committed and notes them in the gate, off the path of the answer."""

    def __init__(self, gate: StockGate) -> None:
        self._gate = gate
        self._pending: defaultdict[tuple[str, int, bool], list[str]] = defaultdict(list)
        self._count = 0

    def add(self, sale_id: str, epoch: int, reservation_ids: Iterable[str], *, waiting: bool = False) -> None:
        """Notes grants of one sale and epoch whose rows are committed; or, with ``waiting``, rows in its line."""
        if self._count < _PENDING_MAX:
            of_sale = self._pending[sale_id, epoch, waiting]
            before = len(of_sale)
            of_sale.extend(reservation_ids)
            self._count += len(of_sale) - before

    async def flush(self) -> None:
        """Sends what has gathered. What cannot be sent is dropped: the reaper finds the rows."""
        pending, self._pending, self._count = self._pending, defaultdict(list), 0
        try:
            for (sale_id, epoch, waiting), ids in pending.items():
                prove = self._gate.prove_waiting if waiting else self._gate.prove
                for first in range(0, len(ids), LOAD_CHUNK):
                    await prove(sale_id, epoch, ids[first : first + LOAD_CHUNK])
        except DomainError as error:
            log.warning("grants are proved later", reason=error.reason_name)

    async def run(self) -> None:
        """Flushes ten times a second until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.flush()
