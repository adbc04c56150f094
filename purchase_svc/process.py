"""Wiring of the serving process, and migration."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from mesh import grants, migrations
from mesh.background import Background
from mesh.call_metrics import ChannelMetrics
from mesh.channels import open_channel
from mesh.interceptors import Limits
from mesh.logs import configure_logs, get_logger
from mesh.metrics import Metrics
from mesh.peer_limits import STREAMS_MAX
from mesh.postgres import open_pool
from mesh.server import GrpcServer, stop_signal, until_stopped
from mesh.settings import read_settings
from mesh.trace_export import exporting
from mesh.transport import PLAINTEXT, Transport, read_transport
from purchase_svc.buying import Buying
from purchase_svc.callers import ALLOWED
from purchase_svc.history_book import HistoryBook
from purchase_svc.operator_desk import OperatorDesk
from purchase_svc.places import Places
from purchase_svc.purchase_book import MIGRATIONS_FOLDER, SQL_FOLDER, PurchaseBook
from purchase_svc.queue_writer import QueueWriter
from purchase_svc.receipts import Receipts
from purchase_svc.refund_book import RefundBook
from purchase_svc.servicer import PurchaseServicer
from purchase_svc.settings import PREFIX, MigrateSettings, ServeSettings
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.statements import Statements
from purchase_svc.summaries import Summaries
from purchase_svc.watching import Watching

log = get_logger(__name__)

#: Shed last: who has bought already is told how it stands, and may cancel or be refunded, however many want
#: to buy.
CRITICAL = frozenset({"GetPurchase", "ListPurchases", "CancelPurchase", "RefundPurchase", "GetReceipt"})


@dataclass(frozen=True)
class Running:
    """A serving process at work."""

    #: gRPC port bound.
    port: int
    watching: Watching
    writer: QueueWriter
    #: Set when a task it needs has failed.
    crashed: "asyncio.Future[BaseException]"


@asynccontextmanager
async def running_serve(settings: ServeSettings, transport: Transport = PLAINTEXT) -> AsyncIterator[Running]:
    """Serves until left; then refuses new calls, ends what is under way, and queues what was bought last.

    Starts while RabbitMQ or the other services are away. Raises SettingsError on an unmigrated database.
    """
    await migrations.require_migrated(settings.database_url, MIGRATIONS_FOLDER)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(settings.database_url, name="purchase-buy", size=settings.pool_size)
        )
        read_pool = await stack.enter_async_context(
            open_pool(settings.database_url, name="purchase-read", size=settings.read_pool_size)
        )
        calls = ChannelMetrics(metrics)
        channel = open_channel(settings.inventory_target, calls, transport=transport, service="inventory")
        stack.push_async_callback(channel.close)
        balance_channel = open_channel(settings.balance_target, calls, transport=transport, service="balance")
        stack.push_async_callback(balance_channel.close)
        # Connects now and without waiting, so that the first buyer need not.
        channel.get_state(try_to_connect=True)
        inventory, balance = InventoryServiceStub(channel), BalanceServiceStub(balance_channel)
        publisher = await stack.enter_async_context(
            SettlementPublisher(settings.amqp_url, name="purchase-serve", declares=False)
        )

        tasks = Background()
        stack.push_async_callback(tasks.stop)
        read_book, histories = PurchaseBook(read_pool), HistoryBook(read_pool)
        writer = QueueWriter(read_book, publisher, unqueued_max=settings.unqueued_max)
        stack.push_async_callback(writer.end, tasks.start(writer.run(), "queue writer"))
        watching = Watching(read_book, watches_max=settings.watches_max, interval_ms=settings.watch_interval_ms)
        tasks.keep(watching.run(), "watching")
        buying = Buying(
            PurchaseBook(pool),
            inventory,
            writer.add,
            in_flight_max=settings.batches_max,
            waiting_max=settings.waiting_max,
            rate_max_per_s=settings.rate_max_per_s,
        )
        stack.push_async_callback(buying.drain)
        servicer = PurchaseServicer(
            read_book,
            buying,
            watching,
            Summaries(read_book, publisher),
            Places(inventory, rate_per_s=settings.waitlist_rate_per_s),
            RefundBook(read_pool),
            Receipts(histories, inventory, balance),
            Statements(read_book, histories, inventory),
            OperatorDesk(read_pool, publisher, settings.amqp_url),
            inventory,
            buy_timeout_s=settings.buy_timeout_ms / 1000,
            refund_window_s=settings.refund_window_s,
        )
        server = await stack.enter_async_context(
            GrpcServer(
                settings.listen,
                [servicer.registration],
                metrics=metrics,
                limits=Limits(settings.calls_max, CRITICAL),
                transport=transport,
                allowed=ALLOWED,
                # All long polls of a gateway are streams of one connection, and its buys come on the same.
                streams_max=STREAMS_MAX + settings.watches_max,
                grace_s=settings.grace_s,
                with_reflection=settings.reflection,
            )
        )
        stack.callback(watching.drain)
        metrics.gauge("flashsale_purchases_unbegun", "Purchases that wait for a batch", lambda: buying.waiting)
        metrics.gauge("flashsale_purchases_unqueued", "Purchases that wait to be published", lambda: writer.waiting)
        metrics.gauge("flashsale_watches", "WatchPurchase streams", lambda: watching.watches)
        metrics.show(settings.metrics_listen, allow_plaintext=transport.allow_plaintext)
        await server.serving()
        yield Running(server.port, watching, writer, tasks.crashed)


async def serve() -> None:
    """The process: serves until SIGTERM or SIGINT. Raises what broke a task of it, so that it is started anew."""
    configure_logs("purchase")
    settings = read_settings(ServeSettings, PREFIX)
    stop = stop_signal()
    transport = read_transport()
    await grants.warn_if_owner(settings.database_url)
    async with exporting("purchase"), running_serve(settings, transport) as running:
        await until_stopped(stop, running.crashed)


async def migrate() -> None:
    """Brings the purchase database to the newest schema, and its roles to their rights."""
    configure_logs("purchase")
    settings = read_settings(MigrateSettings, PREFIX)
    log.info("migrated", applied=await migrations.migrate(settings.database_url, MIGRATIONS_FOLDER))
    if settings.app_role:
        await grants.apply_grants(
            settings.database_url,
            SQL_FOLDER / "grants.sql",
            app_role=settings.app_role,
            auditor_role=settings.auditor_role,
        )
