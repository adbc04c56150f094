"""Wiring of the gateway process."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from gateway.app import App
from gateway.balances import Balances
from gateway.buying import Buying
from gateway.cross_origin import CrossOrigin, origins_of
from gateway.following import StockFollowers
from gateway.http_server import HttpServer, reserved_port, show_own_expiry
from gateway.metrics import GatewayMetrics
from gateway.operating import Operating
from gateway.overview import Overview
from gateway.parts import Parts
from gateway.queue_limit import QueueBounds, QueueLimit
from gateway.reading import Reading
from gateway.settings import Settings
from gateway.streams import StockStreams
from gateway.token_setup import set_up_tokens
from gateway.tokens import TokenChecker
from gateway.upstream import Upstream
from gateway.user_rate import UserRate
from mesh.background import Background
from mesh.call_metrics import ChannelMetrics
from mesh.channels import open_channel
from mesh.logs import configure_logs, get_logger
from mesh.loopback import require_local
from mesh.metrics import Metrics
from mesh.server import stop_signal, until_stopped
from mesh.settings import read_settings
from mesh.trace_export import exporting
from mesh.transport import PLAINTEXT, Transport, read_transport, show_expiry

log = get_logger(__name__)

#: A request is remembered as sent for so much longer than its call may take, s.
_SENT_MARGIN_S = 3.0


@dataclass(frozen=True)
class Running:
    """A gateway that serves. ``crashed`` is set when a task it needs has failed."""

    port: int
    app: App
    parts: Parts
    metrics: Metrics
    crashed: "asyncio.Future[BaseException]"


def _parts(
    settings: Settings, channels: dict[str, Any], background: Background, metrics: Metrics, tokens: TokenChecker
) -> Parts:
    draining = asyncio.Event()
    purchases = PurchaseServiceStub(channels["purchase"])
    inventories = InventoryServiceStub(channels["inventory"])
    accounts = BalanceServiceStub(channels["balance"])
    balances = Balances(accounts, settings.read_timeout_ms / 1000, queue_max=settings.reads_max)
    followers = StockFollowers(
        inventories,
        background,
        sales_max=settings.sales_max,
        unasked_s=settings.unasked_s,
        fingerprints_max=settings.fingerprints_max,
        sent_s=settings.purchase_timeout_ms / 1000 + _SENT_MARGIN_S,
        waiting_max=settings.queue_max,
        wait_s_max=settings.queue_wait_ms / 1000,
        sole=settings.sole,
    )
    bounds = QueueBounds(
        least=settings.queue_min,
        most=settings.queue_max,
        wait_s=settings.queue_wait_ms / 1000,
        standing_wait_s=settings.standing_wait_ms / 1000,
        rush_s=settings.rush_ms / 1000,
        rate_initial_per_s=settings.rate_initial_per_s,
    )
    buying = Buying(purchases, settings, QueueLimit(bounds), asyncio.get_running_loop().time)
    reading = Reading(purchases, inventories, balances, followers, settings, draining)
    streams = StockStreams(
        followers,
        draining,
        streams_max=settings.streams_max,
        life_s=settings.stream_s,
        pushes_per_s=settings.pushes_per_s,
    )
    user_rate = UserRate(settings.user_rate_per_s, settings.user_burst, settings.users_max)
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "gateway_queue_requests": ("Purchases that wait to be sent", lambda: buying.queued),
        "gateway_queue_requests_max": ("Purchases that may be on their way now", lambda: buying.limit.length_max),
        "gateway_overload_lasts": ("1 while the queue is kept short", lambda: int(buying.limit.standing)),
        "gateway_turns_waiting": ("Purchases that wait until a unit may be theirs", lambda: followers.waiting),
        "gateway_batches_in_flight": ("Calls that buy, under way", lambda: buying.in_flight),
        "gateway_service_rate_per_s": ("Measured rate of answers to purchases", lambda: buying.limit.rate_per_s),
        "gateway_reads_in_flight": ("Reads under way", lambda: reading.reads),
        "gateway_long_polls": ("Long polls under way", lambda: reading.waits),
        "gateway_stock_streams": ("Stock streams open", lambda: streams.open),
        "gateway_sales_followed": ("Sales followed", lambda: len(followers)),
        "gateway_users_remembered": ("Users whose rate is remembered", lambda: len(user_rate)),
    }
    for name, (text, read) in gauges.items():
        metrics.gauge(name, text, read)
    counted = GatewayMetrics(metrics)
    return Parts(
        tokens=tokens,
        user_rate=user_rate,
        followers=followers,
        buying=buying,
        reading=reading,
        streams=streams,
        operating=Operating(purchases, inventories),
        overview=Overview(purchases, inventories, accounts, counted),
        upstream=Upstream(channels["purchase"]),
        metrics=counted,
        ending=asyncio.Event(),
        draining=draining,
    )


@asynccontextmanager
async def running(settings: Settings, transport: Transport = PLAINTEXT) -> AsyncIterator[Running]:
    """Serves until the block is left; then drains: health says so, waits and streams end, requests under way finish.
    Between the first and the rest ``notice_s`` seconds pass, in which everything is answered as before, so that whoever
    balances load between gateways sends elsewhere what comes.

    Raises SettingsError for an address that it cannot listen on, or may not without a certificate of its own, and for
    one that cannot be read.
    """
    if not settings.tls_certificate:
        require_local("GATEWAY_LISTEN", "{}:{}".format(*settings.address), allowed=transport.allow_plaintext)
    metrics = Metrics()
    calls = ChannelMetrics(metrics)
    show_expiry(transport, metrics)
    show_own_expiry(settings, metrics)
    targets = {
        "purchase": settings.purchase_target,
        "inventory": settings.inventory_target,
        "balance": settings.balance_target,
    }
    channels = {
        service: open_channel(target, calls, transport=transport, service=service)
        for service, target in targets.items()
    }
    background = Background()
    try:
        tokens = await set_up_tokens(settings, metrics)
        parts = _parts(settings, channels, background, metrics, tokens.checker)
        app = App(parts)
        await parts.upstream.check()
        background.keep(parts.upstream.watch(), "watch the purchase service")
        background.keep(parts.buying.refuse_overdue(), "refuse what has waited too long to be sent")
        # Ends by itself when the gateway drains.
        background.start(parts.streams.push(), "send stock to viewers")
        background.keep(parts.followers.refuse_overdue(), "refuse what has waited too long for a turn")
        background.keep(parts.followers.give_up_unasked(), "give up sales that nobody asks for")
        background.keep(parts.overview.keep_current(), "read the overview while an operator looks")
        if tokens.source is not None:
            background.keep(tokens.source.keep_current(), "keep the keys of tokens current")
        with reserved_port(settings) as port:
            origins = origins_of(settings.cors_origins)
            server = HttpServer(CrossOrigin(app, origins) if origins else app, settings, port)
            await server.start()
        try:
            log.info("serving", listen=settings.listen, port=port)
            metrics.show(settings.metrics_listen, allow_plaintext=transport.allow_plaintext)
            yield Running(port, app, parts, metrics, background.crashed)
        finally:
            log.info("draining", notice_s=settings.notice_s, grace_s=settings.grace_s, requests=app.in_flight)
            parts.ending.set()
            await asyncio.sleep(settings.notice_s)
            parts.draining.set()
            await server.stop(settings.grace_s)
    finally:
        await background.stop()
        for channel in channels.values():
            await channel.close()


async def serve() -> None:
    """Runs until SIGTERM or SIGINT, or until something it needs has crashed."""
    settings = read_settings(Settings, "GATEWAY_")
    configure_logs("gateway")
    stop = stop_signal()
    async with exporting("gateway"), running(settings, read_transport()) as gateway:
        # What exists now lives as long as the process; a collection need not look at it again.
        gc.freeze()
        await until_stopped(stop, gateway.crashed)
