"""Numbered SQL migrations: ``0001_first.sql``, ``0002_next.sql`` ... in a folder, each applied once and in order.

Own code, a screen of it, because all we need is an ordered list with checksums under one lock (docs/dependencies.md).
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg

from mesh.settings import SettingsError

#: Key of the advisory lock under which migrations run ("flashsal" as a number): one migrator at a time per database.
MIGRATION_LOCK_KEY = 0x666C617368
_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number      integer PRIMARY KEY,
    name        text NOT NULL,
    sha256      text NOT NULL,
    apply_time  timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


@dataclass(frozen=True)
class Migration:
    """One file of the folder."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Checksum of the text, by which a later change of an applied file is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_migrations(folder: Path) -> list[Migration]:
    """The migrations of a folder in order. Raises ValueError when the numbers are not 1, 2, 3 ..."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", path.name)
        if match is None:
            raise ValueError(f"{path.name}: not named like 0001_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text()))
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"{folder}: numbers are not 1 to {len(found)}")
    return found


async def _pending(conn: psycopg.AsyncConnection, folder: Path) -> list[Migration]:
    rows = await (await conn.execute("SELECT number, sha256 FROM schema_migrations ORDER BY number")).fetchall()
    applied: dict[int, str] = dict(rows)
    known = read_migrations(folder)
    for migration in known:
        if applied.get(migration.number, migration.sha256) != migration.sha256:
            raise SettingsError(f"migration {migration.number:04} was changed after it was applied")
    if applied and max(applied) > len(known):
        raise SettingsError(f"the database is at migration {max(applied)}, this program knows {len(known)}")
    return [m for m in known if m.number not in applied]


async def migrate(url: str, folder: Path) -> list[str]:
    """Applies what is pending, each in its own transaction; returns the names applied. Many processes may run it."""
    done = []
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as conn:
        await conn.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK_KEY,))
        await conn.execute(_TABLE)
        for migration in await _pending(conn, folder):
            async with conn.transaction():
                await conn.execute(migration.text.encode())
                await conn.execute(
                    "INSERT INTO schema_migrations (number, name, sha256) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.sha256),
                )
            done.append(f"{migration.number:04}_{migration.name}")
    return done


async def require_migrated(url: str, folder: Path) -> None:
    """Raises SettingsError when the database lacks a migration: serving on an old schema is worse than not serving."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as conn:
        row = await (await conn.execute("SELECT to_regclass('schema_migrations')")).fetchone()
        pending = read_migrations(folder) if row is None or row[0] is None else await _pending(conn, folder)
    if pending:
        raise SettingsError(f"the database lacks migration {pending[0].number:04}: run the migrate command first")
