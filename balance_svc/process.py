"""Wires the Balance Service together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from balance_svc import expiry
from balance_svc.account_book import AccountBook
from balance_svc.books_check import BooksChecker
from balance_svc.hold_book import HoldBook
from balance_svc.listings import Listings
from balance_svc.servicer import BalanceServicer
from balance_svc.settings import MigrationSettings, Settings
from balance_svc.transfer_book import TransferBook
from mesh import migrations
from mesh.logs import configure_logs, get_logger
from mesh.postgres import Queries, open_pool
from mesh.server import GrpcServer, stop_signal
from mesh.settings import read_settings

log = get_logger(__name__)

PREFIX = "BALANCE_"
_SQL = Path(__file__).parent / "sql"
_MIGRATIONS = _SQL / "migrations"


@dataclass(frozen=True)
class Running:
    """A service at work: the port of its gRPC server, and the expirer, which ends only by a fault."""

    port: int
    expirer: "asyncio.Task[None]"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Serves until left. Raises SettingsError for an address it cannot listen on or a database that is not migrated."""
    await migrations.require_migrated(settings.database_url, _MIGRATIONS)
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
        expirer = asyncio.create_task(
            expiry.keep_expiring(holds, interval_s=settings.expiry_interval_s, batch_max=settings.expiry_batch_max),
            name="expirer",
        )
        try:
            async with GrpcServer(settings.listen, [servicer.registration()], grace_s=settings.grace_s) as server:
                await server.serving()
                yield Running(server.port, expirer)
        finally:
            expirer.cancel()
            with suppress(asyncio.CancelledError):
                await expirer


async def serve() -> None:
    """The process ``serve``: serves until SIGTERM, or until the expirer fails, which ends the process with an error."""
    settings = read_settings(Settings, PREFIX)
    configure_logs("balance")
    stop = stop_signal()
    async with running(settings) as service:
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, service.expirer}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if service.expirer.done():
            log.critical("the expirer ended", exc_info=service.expirer.exception())


async def migrate() -> None:
    """The process ``migrate``: brings the database to this program's schema."""
    settings = read_settings(MigrationSettings, PREFIX)
    configure_logs("balance")
    log.info("migrated", applied=await migrations.migrate(settings.database_url, _MIGRATIONS))
