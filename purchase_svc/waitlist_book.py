"""Purchases that wait in line, in SQL, as the waitlist follower sees them."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from mesh import tracing
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase import PurchaseState, may_become
from purchase_svc.purchase_book import SQL_FOLDER


class Turn(NamedTuple):
    """What has become of a purchase that waited: RESERVED, CANCELLED, or FAILED for a reason."""

    purchase_id: uuid.UUID
    state: PurchaseState
    #: ErrorReason of one that FAILED, otherwise 0.
    reason: int = 0


class WaitlistBook:
    """Every method raises UNAVAILABLE when PostgreSQL is away; repeating is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)

    async def end_waiting(self, turns: Sequence[Turn]) -> list[tuple[uuid.UUID, int]]:
        """WAITLISTED -> as each turn says, in one statement; those that became RESERVED, with their partitions.

        One that is WAITLISTED no more is left as it is, and so is what has no purchase.
        """
        assert all(may_become(PurchaseState.WAITLISTED, turn.state) for turn in turns)
        parameters = {
            "purchase_ids": [str(turn.purchase_id) for turn in turns],
            "states": [turn.state.value for turn in turns],
            "reasons": [turn.reason for turn in turns],
        }
        with tracing.sql("end_waiting", (turn.purchase_id for turn in turns)) as traced:
            if traced is not None:
                for turn in turns:
                    traced.set(turn.purchase_id, "flashsale.state", turn.state.value)
            rows = await run_statement(self._pool, self._queries.end_waiting, parameters)
        return [(key, partition) for key, partition, state in rows if state == PurchaseState.RESERVED]
