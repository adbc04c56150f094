"""What the role of each service may do in its database: every statement of the service, and nothing else.

PostgreSQL judges rights when a statement is about to run, which it is for EXPLAIN too. So each named query is explained
with NULL for every parameter, as the service's role.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

import balance_svc
import inventory_svc
import purchase_svc
from mesh.grants import apply_grants, warn_if_owner
from mesh.migrations import migrate
from mesh.postgres import Queries
from mesh.settings import SettingsError
from tests.support.servers import Servers

FOLDERS = {
    name: Path(module.__file__ or "").parent / "sql"
    for name, module in (("inventory", inventory_svc), ("balance", balance_svc), ("purchase", purchase_svc))
}
APPEND_ONLY = {
    "balance": ("ledger_entries", "transfers"),
    "inventory": ("sale_changes", "sale_totals", "eligible_users"),
    "purchase": ("queued_batches",),
}
Denied = psycopg.errors.InsufficientPrivilege
Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Database:
    """A service's database as the stack makes it, on servers of the test's own."""

    name: str
    app: str
    owner: str
    auditor: str
    admin: str

    @property
    def queries(self) -> dict[str, LiteralString]:
        """The service's statements by name; not those that only set something for the rest of a transaction."""
        texts = Queries(FOLDERS[self.name])._texts
        return {name: text for name, text in texts.items() if not re.match(r"(--.*\n)*\s*SET ", text)}


def connect(url: str) -> Connection:
    return psycopg.connect(url, autocommit=True)


@pytest.fixture(scope="module")
async def databases(servers: Servers) -> dict[str, Database]:
    """The three, with their roles, migrated by their owners."""
    environment = servers.stack.environment
    admin = servers.postgres_admin_url
    servers.stack.prepare_databases()
    found = {}
    for name, folder in FOLDERS.items():
        upper = name.upper()
        owner = environment[f"OWNER_{upper}_DATABASE_URL"]
        await migrate(owner, folder / "migrations")
        for _ in range(2):
            await apply_grants(owner, folder / "grants.sql", app_role=name, auditor_role="auditor")
        auditor = environment["POSTGRES_AUDITOR_URL"].rpartition("/")[0] + "/" + name
        app = environment[f"{upper}_DATABASE_URL"]
        found[name] = Database(name, app, owner, auditor, admin.rpartition("/")[0] + "/" + name)
    return found


@pytest.fixture(params=list(FOLDERS))
def database(databases: dict[str, Database], request: pytest.FixtureRequest) -> Database:
    """Each of the three."""
    return databases[request.param]


@pytest.fixture
def app(database: Database) -> Iterator[Connection]:
    """A connection as the service."""
    with connect(database.app) as conn:
        yield conn


@pytest.fixture
def balance(databases: dict[str, Database]) -> Iterator[Connection]:
    """A connection as the Balance Service."""
    with connect(databases["balance"].app) as conn:
        yield conn


def explain(conn: Connection, query: LiteralString) -> None:
    nulls = dict.fromkeys(re.findall(r"%\((\w+)\)s", query))
    conn.execute(f"EXPLAIN {query}".rstrip().rstrip(";"), nulls)


def rights(conn: Connection, role: str) -> list[tuple[str, str, str]]:
    """(kind of object, right with its column, name of the object) of every right that a role has been given."""
    return conn.execute(
        """
        SELECT 'TABLE', a.privilege_type, c.relname FROM pg_class c, aclexplode(c.relacl) a
        WHERE a.grantee = %(role)s::regrole AND c.relkind <> 'S'
        UNION ALL
        SELECT 'SEQUENCE', a.privilege_type, c.relname FROM pg_class c, aclexplode(c.relacl) a
        WHERE a.grantee = %(role)s::regrole AND c.relkind = 'S'
        UNION ALL
        SELECT 'TABLE', format('%%s (%%I)', a.privilege_type, t.attname), c.relname
        FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
        WHERE a.grantee = %(role)s::regrole
        ORDER BY 1, 2, 3
        """,
        {"role": role},
    ).fetchall()


def tables(database: Database) -> list[str]:
    with connect(database.admin) as conn:
        rows = conn.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        return [name for (name,) in rows]


def test_every_statement_of_a_service_is_allowed_to_its_role(database: Database, app: Connection) -> None:
    assert len(database.queries) > 15
    for query in database.queries.values():
        explain(app, query)


def test_no_right_is_given_that_no_statement_needs(database: Database) -> None:
    needless = []
    with psycopg.connect(database.admin) as conn:
        given = [
            right for right in rights(conn, database.name) if right[0] == "TABLE" and right[2] != "schema_migrations"
        ]
        assert len(given) > 20
        for kind, right, name in given:
            conn.execute("SAVEPOINT before")
            revoke = sql.SQL(f"REVOKE {right} ON {kind} {{}} FROM {{}}")
            conn.execute(revoke.format(sql.Identifier(name), sql.Identifier(database.name)))
            conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(database.name)))
            try:
                for query in database.queries.values():
                    explain(conn, query)
                needless.append(f"{right} ON {name}")
            except Denied:
                pass
            conn.execute("ROLLBACK TO before")
    assert needless == []


def test_the_sequences_that_are_asked_are_the_ones_that_may_be(database: Database, app: Connection) -> None:
    """Apart, because PostgreSQL judges the right to a sequence only when it is asked for its next value."""
    asked = set(re.findall(r"nextval\('(\w+)'\)", " ".join(database.queries.values())))
    with connect(database.admin) as conn:
        given = {(right, name) for kind, right, name in rights(conn, database.name) if kind == "SEQUENCE"}
    assert given == {("USAGE", name) for name in asked}
    for name in asked:
        app.execute("SELECT nextval(%s)", [name])
        with pytest.raises(Denied):
            app.execute("SELECT setval(%s, 1)", [name])


def test_what_is_booked_stays_as_it_is_booked(database: Database, app: Connection) -> None:
    for table in APPEND_ONLY[database.name]:
        for statement in (
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
            f"TRUNCATE {table} CASCADE",
            f"DROP TABLE {table}",
        ):
            with pytest.raises(Denied):
                app.execute(statement.encode())
        columns = app.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", [table])
        for (column,) in columns.fetchall():
            with pytest.raises(Denied):
                app.execute(f"UPDATE {table} SET {column} = DEFAULT".encode())


def test_a_role_cannot_get_what_it_lacks(database: Database, app: Connection) -> None:
    for table in tables(database):
        for statement in (
            f"TRUNCATE {table}",
            f"ALTER TABLE {table} DISABLE TRIGGER ALL",
            f"ALTER TABLE {table} OWNER TO {database.name}",
            f"DROP TABLE {table} CASCADE",
            f"CREATE TRIGGER forged BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            f"CREATE RULE forged AS ON INSERT TO {table} DO INSTEAD NOTHING",
            f"CREATE INDEX ON {table} ((1))",
        ):
            with pytest.raises(Denied):
                app.execute(statement.encode())
    with connect(database.admin) as conn:
        before = rights(conn, database.name)
        # PostgreSQL warns that nothing was granted, where there is another right to that table.
        for table in tables(database):
            with contextlib.suppress(Denied):
                app.execute(f"GRANT ALL ON {table} TO {database.name}".encode())
        assert rights(conn, database.name) == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        "CREATE EXTENSION dblink",
        "SET ROLE {name}_owner",
        "SET ROLE postgres",
        "SET SESSION AUTHORIZATION postgres",
        "ALTER ROLE {name} SUPERUSER",
        "ALTER ROLE {name} BYPASSRLS",
        "ALTER DATABASE {name} SET session_replication_role = replica",
        "SET session_replication_role = replica",
        "ALTER SYSTEM SET fsync = off",
        "SET log_statement = 'none'",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY (SELECT 1) TO '/tmp/flashsale-stolen'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        "DELETE FROM schema_migrations",
        "INSERT INTO schema_migrations (number, name, sha256) VALUES (9999, 'x', 'x')",
        "DROP DATABASE {name}",
    ],
)
def test_the_server_is_not_the_service_s_to_change(database: Database, app: Connection, statement: str) -> None:
    with connect(database.admin), pytest.raises(Denied):
        app.execute(statement.format(name=database.name).encode())


def test_nobody_comes_into_another_service_s_database(databases: dict[str, Database]) -> None:
    for mine in databases.values():
        for other in (*databases, "postgres", "template1"):
            if other == mine.name:
                continue
            for url in (mine.app, mine.owner):
                with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                    connect(url.rpartition("/")[0] + "/" + other)


def test_an_auditor_reads_everything_and_changes_nothing(database: Database) -> None:
    with connect(database.auditor) as conn:
        for table in tables(database):
            conn.execute(f"SELECT * FROM {table} LIMIT 1".encode())
        # What holds it back is not only a setting, which it could change.
        conn.execute("SET default_transaction_read_only = off")
        for table in tables(database):
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}", f"INSERT INTO {table} DEFAULT VALUES"):
                with pytest.raises(Denied):
                    conn.execute(statement.encode())


def test_an_account_is_made_empty(balance: Connection) -> None:
    with pytest.raises(Denied):
        balance.execute("INSERT INTO accounts (user_id, currency_code, balance_minor) VALUES ('mallory', 'EUR', 1000)")
    with pytest.raises(Denied):
        balance.execute("DELETE FROM accounts")


@pytest.mark.parametrize("column", ["user_id", "amount_minor", "currency_code", "beneficiary", "expire_time"])
def test_a_hold_stays_whose_and_how_much_it_was(balance: Connection, column: str) -> None:
    with pytest.raises(Denied):
        balance.execute(f"UPDATE holds SET {column} = {column}".encode())


@pytest.mark.parametrize("column", ["unit_price_minor", "currency_code", "per_user_limit", "eligible_users_only"])
def test_the_terms_of_a_sale_stay(databases: dict[str, Database], column: str) -> None:
    with connect(databases["inventory"].app) as conn, pytest.raises(Denied):
        conn.execute(f"UPDATE sales SET {column} = {column}".encode())


@pytest.mark.parametrize("column", ["user_id", "sale_id", "quantity", "amount_minor", "create_time"])
def test_a_purchase_stays_whose_and_what_it_was(databases: dict[str, Database], column: str) -> None:
    with connect(databases["purchase"].app) as conn:
        with pytest.raises(Denied):
            conn.execute(f"UPDATE purchases SET {column} = {column}".encode())
        with pytest.raises(Denied):
            conn.execute("DELETE FROM purchases")


async def test_a_right_that_is_struck_out_is_lost(databases: dict[str, Database], tmp_path: Path) -> None:
    made = databases["balance"]
    less = tmp_path / "grants.sql"
    less.write_text("GRANT SELECT ON accounts TO {app};")
    try:
        await apply_grants(made.owner, less, app_role="balance")
        with connect(made.admin) as conn:
            assert rights(conn, "balance") == [("TABLE", "SELECT", "accounts")]
    finally:
        await apply_grants(made.owner, FOLDERS["balance"] / "grants.sql", app_role="balance", auditor_role="auditor")


async def test_the_owner_keeps_its_own_rights(databases: dict[str, Database]) -> None:
    made = databases["balance"]
    with pytest.raises(SettingsError, match="balance_owner owns the tables"):
        await apply_grants(made.owner, FOLDERS["balance"] / "grants.sql", app_role="balance_owner")


async def test_who_serves_as_the_owner_is_warned(
    databases: dict[str, Database], capsys: pytest.CaptureFixture[str]
) -> None:
    for made in databases.values():
        await warn_if_owner(made.app)
        assert "owner" not in capsys.readouterr().out
        await warn_if_owner(made.owner)
        assert "serves as the owner of its tables" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(FOLDERS))
async def test_a_database_that_its_service_owned_is_given_to_its_owner(
    databases: dict[str, Database], servers: Servers, name: str, tmp_path: Path
) -> None:
    """As earlier versions made it: the service's role owned the database and every table, and might make more."""
    made, folder = databases[name], FOLDERS[name]
    with connect(servers.postgres_admin_url) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        conn.execute(f"CREATE DATABASE {name} OWNER {name}".encode())
    with connect(made.admin) as conn:
        conn.execute(f"GRANT ALL ON SCHEMA public TO {name}".encode())
    for path in sorted((folder / "migrations").glob("*.sql"))[:4]:
        (tmp_path / path.name).write_text(path.read_text())
    await migrate(made.app, tmp_path)

    servers.stack.prepare_databases()
    await migrate(made.owner, folder / "migrations")
    await apply_grants(made.owner, folder / "grants.sql", app_role=name, auditor_role="auditor")
    with connect(made.admin) as conn:
        owners = conn.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert owners == [(f"{name}_owner",)]
    with connect(made.app) as conn:
        for query in made.queries.values():
            explain(conn, query)
        for statement in ("CREATE TABLE mine (x int)", *(f"DROP TABLE {table}" for table in tables(made))):
            with pytest.raises(Denied):
                conn.execute(statement.encode())
