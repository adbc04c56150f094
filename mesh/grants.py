"""What the role that a service connects as may do, from ``sql/grants.sql``.

The owner of the tables migrates them and gives the rights away; the service owns nothing and so can neither give itself
what it lacks nor change a table, a trigger or a check.
"""

from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

from mesh.logs import get_logger
from mesh.migrations import MIGRATION_LOCK_KEY
from mesh.settings import SettingsError

log = get_logger(__name__)

_ALL: tuple[LiteralString, ...] = ("TABLES", "SEQUENCES", "FUNCTIONS")


async def apply_grants(url: str, path: Path, *, app_role: str, auditor_role: str = "") -> None:
    """Gives ``app_role`` exactly the rights of the file, which calls it ``{app}``, and ``auditor_role``, if there is
    one, the right to read every table.

    What either had before is taken back in the same transaction, so a right that is struck out of the file is lost, and
    calls under way notice nothing. ``url`` is the owner's. Raises psycopg.Error, and SettingsError when ``app_role`` is
    the owner itself, whom no grant holds back.
    """
    text = _text(path)
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=5) as conn:
        if app_role == conn.info.user:
            raise SettingsError(f"{app_role} owns the tables: serve as another role than the one that migrates")
        await conn.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK_KEY,))
        for everything in _ALL:
            await conn.execute(sql.SQL(f"REVOKE ALL ON ALL {everything} IN SCHEMA public FROM PUBLIC"))
            for role in filter(None, (app_role, auditor_role)):
                statement = sql.SQL(f"REVOKE ALL ON ALL {everything} IN SCHEMA public FROM {{}}")
                await conn.execute(statement.format(sql.Identifier(role)))
        await conn.execute(sql.SQL(text).format(app=sql.Identifier(app_role)))
        if auditor_role:
            statement = sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}")
            await conn.execute(statement.format(sql.Identifier(auditor_role)))


def _text(path: Path) -> LiteralString:
    # Of the program itself, as its named queries are.
    return path.read_text()


async def warn_if_owner(url: str) -> None:
    """Logs a warning when the role that connects by ``url`` owns a table or could make one: no grant holds it back."""
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=5) as conn:
        cursor = await conn.execute(
            "SELECT has_schema_privilege('public', 'CREATE') OR EXISTS ("
            "SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND pg_has_role(relowner, 'USAGE'))"
        )
        row = await cursor.fetchone()
    if row is not None and row[0]:
        log.warning("serves as the owner of its tables: give it a role of its own (APP_ROLE of the migrate command)")
