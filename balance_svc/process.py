"""Wires the Balance Service together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from balance_svc import expiry
from balance_svc.account_book import AccountBook
from balance_svc.books_check import BooksChecker
from balance_svc.callers import ALLOWED
from balance_svc.hold_book import HoldBook
from balance_svc.listings import Listings
from balance_svc.servicer import BalanceServicer
from balance_svc.settings import MigrationSettings, Settings
from balance_svc.transfer_book import TransferBook
from mesh import grants, migrations
from mesh.background import Background
from mesh.interceptors import Limits
from mesh.logs import configure_logs, get_logger
from mesh.metrics import Metrics
from mesh.postgres import Queries, open_pool
from mesh.server import GrpcServer, stop_signal, until_stopped
from mesh.settings import read_settings
from mesh.trace_export import exporting
from mesh.transport import PLAINTEXT, Transport, read_transport

log = get_logger(__name__)

PREFIX = "BALANCE_"
#: Shed last. The settlement has a pace of its own, so reads however many must not crowd it out; and what gives money
#: back or takes what is held ends something that was begun.
CRITICAL = frozenset(
    {"BatchPlaceHolds", "BatchCaptureHolds", "BatchReleaseHolds", "ReverseCapture", "BatchReverseCaptures"}
)
_SQL = Path(__file__).parent / "sql"
_MIGRATIONS = _SQL / "migrations"
_GRANTS = _SQL / "grants.sql"


@dataclass(frozen=True)
class Running:
    """A service at work: the port of its gRPC server. ``crashed`` is set when a task it needs has failed."""

    port: int
    crashed: "asyncio.Future[BaseException]"


@asynccontextmanager
async def running(settings: Settings, transport: Transport = PLAINTEXT) -> AsyncIterator[Running]:
    """Serves until left. Raises SettingsError for an address it cannot listen on or a database that is not migrated."""
    await migrations.require_migrated(settings.database_url, _MIGRATIONS)
    metrics = Metrics()
    queries = Queries(_SQL)
    async with open_pool(settings.database_url, name="balance", size=settings.pool_size) as pool:
        holds = HoldBook(pool, queries, timedelta(seconds=settings.hold_ttl_s))
        servicer = BalanceServicer(
            AccountBook(pool, queries),
            TransferBook(pool, queries),
            holds,
            Listings(pool, queries),
            BooksChecker(pool, queries),
        )
        # What lapsed while nobody served is free again before anybody can be refused for want of it.
        await expiry.expire_overdue(holds, settings.expiry_batch_max)
        tasks = Background()
        tasks.keep(
            expiry.keep_expiring(holds, interval_s=settings.expiry_interval_s, batch_max=settings.expiry_batch_max),
            "expirer",
        )
        try:
            async with GrpcServer(
                settings.listen,
                [servicer.registration()],
                metrics=metrics,
                limits=Limits(settings.calls_max, CRITICAL),
                transport=transport,
                allowed=ALLOWED,
                grace_s=settings.grace_s,
                with_reflection=settings.reflection,
            ) as server:
                metrics.show(settings.metrics_listen, allow_plaintext=transport.allow_plaintext)
                await server.serving()
                yield Running(server.port, tasks.crashed)
        finally:
            await tasks.stop()


async def serve() -> None:
    """The process ``serve``: serves until SIGTERM, or until the expirer fails, which ends the process with an error."""
    settings = read_settings(Settings, PREFIX)
    configure_logs("balance")
    stop = stop_signal()
    transport = read_transport()
    await grants.warn_if_owner(settings.database_url)
    async with exporting("balance"), running(settings, transport) as service:
        await until_stopped(stop, service.crashed)


async def migrate() -> None:
    """The process ``migrate``: brings the database to this program's schema, and its roles to their rights."""
    settings = read_settings(MigrationSettings, PREFIX)
    configure_logs("balance")
    log.info("migrated", applied=await migrations.migrate(settings.database_url, _MIGRATIONS))
    if settings.app_role:
        await grants.apply_grants(
            settings.database_url, _GRANTS, app_role=settings.app_role, auditor_role=settings.auditor_role
        )
