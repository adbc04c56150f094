"""Wires the inventory service together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from inventory_svc.callers import ALLOWED
from inventory_svc.eligibility import Eligibility
from inventory_svc.gate_moves import GateMoves
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.lifecycle import Lifecycle
from inventory_svc.promoter import Promoter
from inventory_svc.reaper import Reaper
from inventory_svc.recalibration import RecalibrationMetrics, Recalibrator
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.reserving import Reserving
from inventory_svc.sale_book import GRANTS, MIGRATIONS, SaleBook
from inventory_svc.servicer import InventoryServicer
from inventory_svc.settings import PREFIX, MigrationSettings, Settings
from inventory_svc.stock_gate import StockGate
from inventory_svc.stock_watch import StockWatch
from inventory_svc.timekeeper import Timekeeper
from inventory_svc.waitlist_book import WaitlistBook
from mesh import grants, migrations
from mesh.background import Background
from mesh.interceptors import Limits
from mesh.logs import configure_logs, get_logger
from mesh.metrics import Metrics
from mesh.postgres import Pool, open_pool
from mesh.redis_pool import open_redis
from mesh.server import GrpcServer, stop_signal, until_stopped
from mesh.settings import read_settings
from mesh.trace_export import exporting
from mesh.transport import PLAINTEXT, Transport, read_transport

log = get_logger(__name__)

#: Shed last: what ends a reservation, and what an operator does when it matters.
CRITICAL = frozenset(
    {
        "BatchConfirmReservations",
        "BatchReleaseReservations",
        "BatchLeaveWaitlist",
        "ListWaitlistOutcomes",
        "BatchAcknowledgeWaitlistOutcomes",
        "RecalibrateSale",
        "PauseSale",
        "CloseSale",
    }
)
#: SQL connections of the background work, which so never waits behind calls, nor they behind it.
_BACKGROUND_CONNECTIONS = 4


@dataclass(frozen=True)
class Running:
    """A service at work: the port of its gRPC server. ``crashed`` is set when a task it needs has failed."""

    port: int
    crashed: "asyncio.Future[BaseException]"


@asynccontextmanager
async def running(settings: Settings, transport: Transport = PLAINTEXT) -> AsyncIterator[Running]:
    """Serves until left. Raises SettingsError for an address it cannot listen on or a database that is not migrated."""
    await migrations.require_migrated(settings.database_url, MIGRATIONS)
    metrics = Metrics()
    async with (
        open_pool(settings.database_url, name="inventory", size=settings.sql_connections) as pool,
        open_pool(settings.database_url, name="inventory-background", size=_BACKGROUND_CONNECTIONS) as background,
        open_redis(settings.redis_url, connections_max=settings.redis_connections) as redis,
        _serving(
            settings, transport, pool, background, StockGate(redis, waiting_max=settings.waitlist_max), metrics
        ) as service,
    ):
        yield service


@asynccontextmanager
async def _serving(
    settings: Settings, transport: Transport, pool: Pool, background: Pool, gate: StockGate, metrics: Metrics
) -> AsyncIterator[Running]:
    def in_service(sale_id: str, available: int) -> None:
        watch.hint(sale_id, available)
        left_over.soon()
        promoter.wake(sale_id)

    def changed(sale_id: str, available: int, waiting: int) -> None:
        watch.hint(sale_id, available)
        if available and waiting:
            promoter.wake(sale_id)

    sales, book, waitlist = SaleBook(pool), ReservationBook(pool), WaitlistBook(pool)
    # The background work has books of its own, on connections of its own.
    quiet_sales, quiet_book = SaleBook(background), ReservationBook(background)
    quiet_waitlist = WaitlistBook(background)
    recalibrator = Recalibrator(
        gate,
        quiet_sales,
        background,
        lease_ms=settings.calibration_lease_ms,
        in_service=in_service,
        metrics=RecalibrationMetrics(metrics),
    )
    stale = recalibrator.report
    watch = StockWatch(gate, watchers_max=settings.watchers_max, stale=stale)
    moves = GateMoves(gate, sales, book, changed=changed, stale=stale)
    left_over = GateMoves(gate, quiet_sales, quiet_book, changed=changed, stale=stale)
    proofs = GrantProofs(gate)
    promoter = Promoter(gate, quiet_waitlist, left_over, proofs)
    eligibility = Eligibility(pool)
    reserving = Reserving(
        gate, sales, book, waitlist, proofs, eligibility, changed=changed, joined=promoter.wake, stale=stale
    )
    reaper = Reaper(
        gate,
        quiet_sales,
        quiet_book,
        quiet_waitlist,
        grant_age_max_ms=settings.grant_age_max_ms,
        changed=changed,
    )
    timekeeper = Timekeeper(quiet_sales, Lifecycle(quiet_sales, recalibrator))
    servicer = InventoryServicer(
        gate=gate,
        sales=sales,
        book=book,
        waitlist=waitlist,
        reserving=reserving,
        moves=moves,
        recalibrator=recalibrator,
        watch=watch,
        lifecycle=Lifecycle(sales, recalibrator),
        eligibility=eligibility,
        rescheduled=timekeeper.soon,
    )
    metrics.gauges(
        "flashsale_stock_units",
        "Units of the sales that somebody watches, by state: available, reserved, sold",
        ("sale_id", "state"),
        lambda: {
            (stock.sale_id, state): getattr(stock, state)
            for stock in watch.readings()
            for state in ("available", "reserved", "sold")
        },
    )
    metrics.gauges(
        "flashsale_waitlist_requests",
        "Requests that wait in line for the sales that somebody watches",
        ("sale_id",),
        lambda: {(stock.sale_id,): stock.waiting for stock in watch.readings()},
    )
    tasks = Background()
    tasks.keep(recalibrator.watch(period_ms=settings.watchdog_period_ms), "recalibration watch")
    tasks.keep(left_over.repeat(period_ms=settings.moves_period_ms), "gate moves")
    tasks.keep(reaper.run(period_ms=settings.reaper_period_ms), "reaper")
    tasks.keep(timekeeper.run(period_ms=settings.timekeeper_period_ms), "timekeeper")
    tasks.keep(promoter.run(period_ms=settings.promoter_period_ms), "promoter")
    tasks.keep(proofs.run(), "grant proofs")
    tasks.keep(watch.failure(), "stock watch")
    tasks.keep(watch.follow_edges(), "stock edges")
    try:
        async with GrpcServer(
            settings.listen,
            [servicer.registration()],
            metrics=metrics,
            limits=Limits(settings.calls_max, CRITICAL),
            transport=transport,
            allowed=ALLOWED,
            grace_s=settings.drain_s,
            with_reflection=settings.reflection,
        ) as server:
            metrics.show(settings.metrics_listen, allow_plaintext=transport.allow_plaintext)
            await server.serving()
            try:
                yield Running(server.port, tasks.crashed)
            finally:
                # Streams never end by themselves, so they would use up the time that calls get.
                await watch.close()
        await recalibrator.drain(most_s=settings.drain_s)
    finally:
        await tasks.stop()


async def serve() -> None:
    """The process ``serve``: serves until SIGTERM, or until a background task fails, which ends it with an error."""
    settings = read_settings(Settings, PREFIX)
    configure_logs("inventory")
    stop = stop_signal()
    transport = read_transport()
    await grants.warn_if_owner(settings.database_url)
    async with exporting("inventory"), running(settings, transport) as service:
        await until_stopped(stop, service.crashed)


async def migrate() -> None:
    """The process ``migrate``: brings the database to this program's schema, and its roles to their rights."""
    settings = read_settings(MigrationSettings, PREFIX)
    configure_logs("inventory")
    log.info("migrated", applied=await migrations.migrate(settings.database_url, MIGRATIONS))
    if settings.app_role:
        await grants.apply_grants(
            settings.database_url, GRANTS, app_role=settings.app_role, auditor_role=settings.auditor_role
        )
