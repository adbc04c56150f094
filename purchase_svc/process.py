"""Wiring of the serving process, and migration."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from mesh import migrations
from mesh.channels import open_channel
from mesh.logs import configure_logs, get_logger
from mesh.postgres import open_pool
from mesh.server import GrpcServer, stop_signal
from mesh.settings import read_settings
from purchase_svc.buying import Buying
from purchase_svc.purchase_book import MIGRATIONS_FOLDER, PurchaseBook
from purchase_svc.queue_writer import QueueWriter
from purchase_svc.servicer import PurchaseServicer
from purchase_svc.settings import PREFIX, MigrateSettings, ServeSettings
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.summaries import Summaries
from purchase_svc.watching import Watching

log = get_logger(__name__)


@dataclass(frozen=True)
class Running:
    """A serving process at work."""

    #: gRPC port bound.
    port: int
    watching: Watching
    writer: QueueWriter
    #: Set when a task that must run for ever has ended; ``failure`` of it is the reason.
    failed: "asyncio.Future[BaseException]"


def _start(work: Coroutine[Any, Any, None], failed: "asyncio.Future[BaseException]", name: str) -> "asyncio.Task[None]":
    """Starts a task that is to run until it is stopped; if it breaks, ``failed`` gets the error."""

    def ended(task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not failed.done():
            log.error("a task broke", task=name, exc_info=error)
            failed.set_result(error)

    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(ended)
    return task


async def _stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def running_serve(settings: ServeSettings) -> AsyncIterator[Running]:
    """Serves until left; then refuses new calls, ends what is under way, and queues what was bought last.

    Starts while RabbitMQ or the Inventory Service is away. Raises SettingsError on an unmigrated database.
    """
    await migrations.require_migrated(settings.database_url, MIGRATIONS_FOLDER)
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(settings.database_url, name="purchase-buy", size=settings.pool_size)
        )
        read_pool = await stack.enter_async_context(
            open_pool(settings.database_url, name="purchase-read", size=settings.read_pool_size)
        )
        channel = open_channel(settings.inventory_target)
        stack.push_async_callback(channel.close)
        # Connects now and without waiting, so that the first buyer need not.
        channel.get_state(try_to_connect=True)
        inventory = InventoryServiceStub(channel)
        publisher = await stack.enter_async_context(SettlementPublisher(settings.amqp_url, name="purchase-serve"))

        read_book = PurchaseBook(read_pool)
        writer = QueueWriter(read_book, publisher, unqueued_max=settings.unqueued_max)
        stack.push_async_callback(writer.end, _start(writer.run(), failed, "queue writer"))
        watching = Watching(read_book, watches_max=settings.watches_max, interval_ms=settings.watch_interval_ms)
        stack.push_async_callback(_stop, _start(watching.run(), failed, "watching"))
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
            inventory,
            buy_timeout_s=settings.buy_timeout_ms / 1000,
        )
        server = await stack.enter_async_context(
            GrpcServer(
                settings.listen,
                [servicer.registration],
                grace_s=settings.grace_s,
                with_reflection=settings.reflection,
            )
        )
        stack.callback(watching.drain)
        await server.serving()
        yield Running(server.port, watching, writer, failed)


async def serve() -> None:
    """The process: serves until SIGTERM or SIGINT. Raises what broke a task of it, so that it is started anew."""
    configure_logs("purchase")
    settings = read_settings(ServeSettings, PREFIX)
    stop = stop_signal()
    async with running_serve(settings) as running:
        running.failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
    if running.failed.done():
        raise running.failed.result()


async def migrate() -> None:
    """Brings the purchase database to the newest schema."""
    configure_logs("purchase")
    settings = read_settings(MigrateSettings, PREFIX)
    log.info("migrated", applied=await migrations.migrate(settings.database_url, MIGRATIONS_FOLDER))
