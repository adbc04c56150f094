"""Who may buy in a sale that is for certain users only."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from inventory_svc.sale_book import SQL
from mesh.postgres import Pool, connection, run_statement

#: Users remembered to be eligible, of all sales together; who is forgotten is looked up again.
_KEPT_MAX = 100_000


class Eligibility:
    """The lists of eligible users. Nobody is ever taken off one, so that whoever was found on it may be remembered.
    Methods raise UNAVAILABLE when the database is away: who cannot be looked up may not buy."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def add(self, sale_id: str, user_ids: Sequence[str]) -> tuple[int, int]:
        """Puts users on a sale's list; how many were not on it before, and how many are on it now. The sale exists."""
        # In one order everywhere, so that two calls that add the same users cannot wait for each other in a circle.
        parameters = {"sale_id": sale_id, "users": sorted(set(user_ids))}
        ((added,),) = await run_statement(self._pool, SQL.add_eligible_users, parameters)
        ((eligible,),) = await run_statement(self._pool, SQL.count_eligible_users, {"sale_id": sale_id})
        return int(added), int(eligible)

    async def among(self, sale_id: str, user_ids: Iterable[str]) -> set[str]:
        """Those of the users who may buy in the sale; one query for all who are not remembered."""
        found = set()
        unknown = []
        for user_id in user_ids:
            if (sale_id, user_id) in self._known:
                found.add(user_id)
            else:
                unknown.append(user_id)
        if unknown:
            async with connection(self._pool) as conn:
                parameters = {"sale_id": sale_id, "users": unknown}
                rows = await (await conn.execute(SQL.eligible_among, parameters)).fetchall()
            for (user_id,) in rows:
                found.add(user_id)
                self._known[sale_id, user_id] = None
            while len(self._known) > _KEPT_MAX:
                self._known.popitem(last=False)
        return found
