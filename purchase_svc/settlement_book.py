"""Purchases in SQL as settlement and the sweeper see them. Every statement may be repeated without further harm."""

import uuid
from collections.abc import Sequence

from mesh import tracing
from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase_book import SQL_FOLDER
from purchase_svc.settlement_rules import Claimed, Ending


class SettlementBook:
    """Claiming and finishing purchases. Every method raises UNAVAILABLE when PostgreSQL is away; the outcome of a
    change is then unknown, and repeating it is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)

    async def claim(self, ids: Sequence[uuid.UUID]) -> list[Claimed]:
        """RESERVED or SETTLING -> SETTLING, one attempt more; returns those. What is final or PARKED is left out.

        From here on no cancel can win.
        """
        parameters = {"purchase_ids": list(map(str, ids))}
        with tracing.sql("claim_purchases", ids):
            rows = await run_statement(self._pool, self._queries.claim_purchases, parameters)
        return [Claimed(*row) for row in rows]

    async def list_missing(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Of these ids, those that no purchase has."""
        parameters = {"purchase_ids": list(map(str, ids))}
        return {row[0] for row in await run_statement(self._pool, self._queries.list_missing, parameters)}

    async def finish(self, endings: Sequence[Ending]) -> None:
        """SETTLING -> as each ending says. One that has left SETTLING already is left as it is."""
        if not endings:
            return
        parameters = {
            "purchase_ids": [str(ending.purchase_id) for ending in endings],
            "states": [ending.state.value for ending in endings],
            "reasons": [ending.reason for ending in endings],
            # Arrays of different lengths cannot travel as an array of arrays.
            "share_numbers": ["{" + ",".join(map(str, ending.share_numbers)) + "}" for ending in endings],
        }
        with tracing.sql("finish_purchases", (each.purchase_id for each in endings)) as traced:
            if traced is not None:
                for ending in endings:
                    traced.set(ending.purchase_id, "flashsale.state", ending.state.value)
            await run_statement(self._pool, self._queries.finish_purchases, parameters)

    async def mark_requeued(self, ids: Sequence[uuid.UUID], delay_s: float = 0.0) -> None:
        """Notes that a message with these reaches its partition ``delay_s`` seconds from now."""
        await run_statement(
            self._pool, self._queries.mark_requeued, {"purchase_ids": list(map(str, ids)), "delay_s": delay_s}
        )
