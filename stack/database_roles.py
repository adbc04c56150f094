"""The databases of the services and who may do what in them.

Of each service there are two roles. Its owner owns the database and every table, and is only used to migrate. The
service itself connects as a role that owns nothing and has the rights of its ``sql/grants.sql``, which migration gives
it. An auditor may read all three databases and change nothing.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg
from psycopg import sql

from stack.errors import StackError
from stack.ports import Ports
from stack.postgres_server import admin_url
from stack.secret_store import Secrets

DATABASES = ("inventory", "balance", "purchase")
AUDITOR = "auditor"
# Tables are given to their owner when nobody is at work on them: longest wait for that.
_LOCK_S_MAX = 30
# Whatever somebody may have given them: none can become more than it is.
_ATTRIBUTES: LiteralString = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT"


def owner_of(name: str) -> str:
    """The role that owns a service's database."""
    return f"{name}_owner"


def create(ports: Ports, secrets: Secrets) -> None:
    """Make the roles and databases, each open to its own roles only. Repeatable; who serves meanwhile notices nothing.

    A database that its service's own role owns, as earlier versions made them, is given to its owner: until it has been
    migrated, its service has no rights there. Raises StackError.
    """
    try:
        _create(ports, secrets)
    except psycopg.Error as error:
        raise StackError(f"the databases could not be prepared; make up may be repeated: {error}") from error


def _create(ports: Ports, secrets: Secrets) -> None:
    passwords = {AUDITOR: secrets.auditor_database_password}
    for name in DATABASES:
        passwords[owner_of(name)] = getattr(secrets, f"{name}_owner_password")
        passwords[name] = getattr(secrets, f"{name}_database_password")
    with psycopg.connect(admin_url(ports, secrets), autocommit=True) as connection:
        for role, password in passwords.items():
            _create_role(connection, role, password)
        _run(connection, "ALTER ROLE {} SET default_transaction_read_only = on", AUDITOR)
        for name in DATABASES:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                _run(connection, "CREATE DATABASE {} OWNER {}", name, owner_of(name))
            _run(connection, "ALTER DATABASE {} OWNER TO {}", name, owner_of(name))
        # At once: a service that connects in between would be turned away.
        with connection.transaction():
            for name in (*DATABASES, "postgres", "template1"):
                _run(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", name)
            for name in DATABASES:
                _run(connection, "REVOKE ALL ON DATABASE {} FROM {}", name, name)
                _run(connection, "GRANT CONNECT ON DATABASE {} TO {}, {}", name, name, AUDITOR)
    for name in DATABASES:
        url = _url("postgres", secrets.postgres_password, name, ports)
        with psycopg.connect(url, options=f"-c lock_timeout={_LOCK_S_MAX}s") as connection:
            _prepare_schema(connection, name)


def database_url(name: str, ports: Ports, secrets: Secrets) -> str:
    """The connection that a service serves with, to its own database."""
    return _url(name, getattr(secrets, f"{name}_database_password"), name, ports)


def owner_url(name: str, ports: Ports, secrets: Secrets) -> str:
    """The connection that a service's database is migrated with; no process that serves gets it."""
    return _url(owner_of(name), getattr(secrets, f"{name}_owner_password"), name, ports)


def auditor_url(ports: Ports, secrets: Secrets) -> str:
    """The connection of whoever looks, to the inventory's database; it may read the two others as well."""
    return _url(AUDITOR, secrets.auditor_database_password, "inventory", ports)


def _url(role: str, password: str, database: str, ports: Ports) -> str:
    return f"postgresql://{role}:{password}@{ports.address('postgres')}/{database}"


def _create_role(connection: psycopg.Connection[tuple[object, ...]], role: str, password: str) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        _run(connection, "CREATE ROLE {}", role)
    # The server gets the SCRAM verifier only, so that no password can end up in its log.
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    statement = sql.SQL(f"ALTER ROLE {{}} {_ATTRIBUTES} PASSWORD {{}}")
    connection.execute(statement.format(sql.Identifier(role), sql.Literal(verifier)))


def _prepare_schema(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """Within a service's database, at once: what its role owned is its owner's, and nobody else may make anything."""
    _run(connection, "REASSIGN OWNED BY {} TO {}", name, owner_of(name))
    _run(connection, "REVOKE ALL ON SCHEMA public FROM PUBLIC, {}, {}", name, AUDITOR)
    _run(connection, "GRANT USAGE, CREATE ON SCHEMA public TO {}", owner_of(name))
    _run(connection, "GRANT USAGE ON SCHEMA public TO {}, {}", name, AUDITOR)
    # PostgreSQL lets everybody call a new function otherwise.
    _run(connection, "ALTER DEFAULT PRIVILEGES FOR ROLE {} REVOKE ALL ON FUNCTIONS FROM PUBLIC", owner_of(name))


def _run(connection: psycopg.Connection[tuple[object, ...]], statement: LiteralString, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
