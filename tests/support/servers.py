"""Private servers for tests: own folder, own ports, gone when the test run is."""

import http.client
import itertools
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import grpc
import psycopg
from psycopg import sql

from stack.folder import CHECKOUT
from stack.peers import open_as, peer_files
from stack.private import private_stack
from stack.replicas import Replicas
from stack.services import base_environment


class Servers:
    """Redis, PostgreSQL and RabbitMQ, each started at its first use. Methods block: call those that stop a server by
    ``asyncio.to_thread`` when something in this event loop is to see it happen."""

    def __init__(self) -> None:
        self.stack, self._lease = private_stack()
        self._started: set[str] = set()
        self._numbers = itertools.count(1)
        #: Migrated databases that others are copies of, by the service's name.
        self._templates: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.discard()
        self._lease.close()

    def _url(self, part: str, name: str) -> str:
        if part not in self._started:
            self.stack.start(*(("epmd", "rabbitmq") if part == "rabbitmq" else (part,)))
            self._started.add(part)
        return self.stack.environment[name]

    @property
    def redis_url(self) -> str:
        """Redis, as its administrator."""
        return self._url("redis", "REDIS_URL")

    @property
    def amqp_url(self) -> str:
        """RabbitMQ, as its administrator."""
        return self._url("rabbitmq", "AMQP_URL")

    @property
    def inventory_redis_url(self) -> str:
        """Redis, as the inventory service."""
        return self._url("redis", "INVENTORY_REDIS_URL")

    @property
    def purchase_amqp_url(self) -> str:
        """RabbitMQ, as the process that serves purchases."""
        return self._url("rabbitmq", "PURCHASE_AMQP_URL")

    @property
    def settlement_amqp_url(self) -> str:
        """RabbitMQ, as a settlement worker."""
        return self._url("rabbitmq", "SETTLEMENT_AMQP_URL")

    @property
    def postgres_admin_url(self) -> str:
        """PostgreSQL, as its superuser, database postgres."""
        return self._url("postgres", "POSTGRES_ADMIN_URL")

    @property
    def redis_dir(self) -> Path:
        """The folder in which Redis keeps ``appendonlydir/``."""
        return self.stack.folder.redis / "data"

    def admin_url_of(self, database_url: str) -> str:
        """The superuser's URL of the database that ``database_url`` names."""
        return self.postgres_admin_url.rpartition("/")[0] + "/" + database_url.rpartition("/")[2]

    def new_database(self, name: str) -> str:
        """A fresh, empty database owned by a fresh role; its URL."""
        unique, password = f"{name}_{next(self._numbers)}", secrets.token_hex(16)
        self._as_admin(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(unique), sql.Literal(password)),
            sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(unique)),
        )
        address = self.postgres_admin_url.rpartition("@")[2].rpartition("/")[0]
        return f"postgresql://{unique}:{password}@{address}/{unique}"

    def migrated_database(self, service: str) -> str:
        """A fresh database of inventory, balance or purchase, migrated; its URL. A copy of one that was migrated once,
        which takes a fifth of the time; the copies of a service have one owner."""
        template = self._templates.get(service)
        if template is None:
            template = self._templates[service] = self._migrated(self.new_database(service), service)
        address, _, original = template.rpartition("/")
        copy = f"{original}_{next(self._numbers)}"
        self._as_admin(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                sql.Identifier(copy), sql.Identifier(original), sql.Identifier(original)
            )
        )
        return f"{address}/{copy}"

    def _migrated(self, url: str, service: str) -> str:
        subprocess.run(
            (sys.executable, "-m", f"{service}_svc", "migrate"),
            check=True,
            timeout=60,
            env=base_environment() | {f"{service.upper()}_DATABASE_URL": url},
            cwd=CHECKOUT,
        )
        # Nobody, autovacuum neither, is connected while it is copied.
        database = sql.Identifier(url.rpartition("/")[2])
        self._as_admin(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
        return url

    def _as_admin(self, *statements: sql.Composed) -> None:
        with psycopg.connect(self.postgres_admin_url, autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def stop(self, part: str) -> None:
        """Stops redis, postgres or rabbitmq, cleanly."""
        self.stack.stop(part)

    def start(self, part: str) -> None:
        """Starts it again, and waits until it answers."""
        self.stack.start(part)

    def restart(self, part: str) -> None:
        """Stops and starts it."""
        self.stack.restart(part)

    def kill(self, part: str) -> float:
        """Ends it with SIGKILL, and waits until it answers again; the seconds that took."""
        return self.stack.kill(part)

    def wait_ready(self, part: str) -> None:
        """Waits until it answers."""
        self.stack.wait_ready(part)


class MeshStack:
    """The whole system as processes, on servers of its own.

    ``replicas`` is the number of inventory, balance, purchase and gateway processes each, ``settlement_workers`` that
    of workers; ``settings`` and ``extra_environment`` are a Stack's.
    """

    def __init__(
        self,
        *,
        replicas: int = 1,
        settlement_workers: int = 1,
        extra_environment: Mapping[str, Mapping[str, str]] | None = None,
        **settings: str,
    ) -> None:
        self.stack, self._lease = private_stack(
            settings,
            replicas=replace(Replicas.of_each(replicas), settlement=settlement_workers),
            extra_environment=extra_environment,
        )
        try:
            self.stack.start("epmd", "redis", "postgres", "rabbitmq")
            self.stack.prepare_databases()
            self.stack.start_services()
        except BaseException:
            self.__exit__()
            raise
        #: Everything ``stack.environment.load`` would give, secrets included.
        self.environment = self.stack.environment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.discard()
        self._lease.close()

    @property
    def gateway_url(self) -> str:
        """http://host:port of the first gateway"""
        return self.environment["GATEWAY_URL"]

    @property
    def gateway_urls(self) -> list[str]:
        """That of every gateway."""
        return self.environment["GATEWAY_URLS"].split(",")

    @property
    def inventory_target(self) -> str:
        """host:port, or gRPC's list of them"""
        return self.environment["INVENTORY_TARGET"]

    @property
    def balance_target(self) -> str:
        """host:port, or gRPC's list of them"""
        return self.environment["BALANCE_TARGET"]

    @property
    def purchase_target(self) -> str:
        """host:port, or gRPC's list of them"""
        return self.environment["PURCHASE_TARGET"]

    def as_peer(self, identity: str, service: str) -> grpc.aio.Channel:
        """A channel to a kind of service with the certificate of this peer: "gateway", "settlement", "client/local"."""
        target = self.environment[f"{service.upper()}_TARGET"]
        return open_as(peer_files(self.environment, identity), service, target)

    @property
    def jwt_secret(self) -> str:
        """By which the gateway checks tokens."""
        return self.environment["GATEWAY_JWT_SECRET"]


def metrics_text(stack: MeshStack, kind: str) -> str:
    """What the first process of a kind shows on its metrics port. Blocks."""
    address = stack.stack.environment[f"{kind.upper()}_METRICS_LISTEN"]
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
