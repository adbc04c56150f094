"""Parked purchases in SQL, as an operator sees and ends them."""

import uuid
from collections.abc import Sequence

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.postgres import Pool, Queries, run_statement
from purchase_svc.purchase import Purchase
from purchase_svc.purchase_book import SQL_FOLDER, purchase_from_row


class ParkedBook:
    """Every method raises UNAVAILABLE when PostgreSQL is away; repeating is safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._queries = Queries(SQL_FOLDER)

    async def count(self) -> int:
        """How many are PARKED."""
        return int((await run_statement(self._pool, self._queries.count_parked, {}))[0][0])

    async def list_oldest(self, limit: int) -> list[Purchase]:
        """Up to ``limit`` that are PARKED, the oldest purchase first."""
        rows = await run_statement(self._pool, self._queries.list_parked, {"limit": limit})
        return [purchase_from_row(row) for row in rows]

    async def replay(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
        """PARKED -> SETTLING with no attempts made; the partitions of those that were PARKED."""
        parameters = {"purchase_ids": list(map(str, ids))}
        return dict(await run_statement(self._pool, self._queries.replay_parked, parameters))

    async def fail(self, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """PARKED -> FAILED for FAILED_BY_OPERATOR; those that were PARKED.

        Their holds must be closed and their units given back: nothing is cleaned up afterwards.
        """
        parameters = {
            "purchase_ids": list(map(str, ids)),
            "reason": ErrorReason.ERROR_REASON_FAILED_BY_OPERATOR,
        }
        return {row[0] for row in await run_statement(self._pool, self._queries.fail_parked, parameters)}
