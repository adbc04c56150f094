"""Wiring of the settlement worker."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from mesh import migrations
from mesh.background import Background
from mesh.call_metrics import ChannelMetrics
from mesh.logs import configure_logs, get_logger
from mesh.metrics import Metrics
from mesh.postgres import open_pool
from mesh.server import GrpcServer, stop_signal, until_stopped
from mesh.settings import read_settings
from mesh.trace_export import exporting
from mesh.transport import PLAINTEXT, Transport, read_transport
from purchase_svc.abandoned import AbandonedSearch
from purchase_svc.backlog import Backlog
from purchase_svc.leased_rounds import Lease, LeasedRounds
from purchase_svc.pacing import Pace, TokenBucket
from purchase_svc.purchase import PARTITIONS
from purchase_svc.purchase_book import MIGRATIONS_FOLDER
from purchase_svc.refund_book import RefundBook
from purchase_svc.refunder import Refunder
from purchase_svc.settlement import Settlement
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_lane import Lane
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import IDS_MAX
from purchase_svc.settlement_services import open_services
from purchase_svc.settlement_settings import PREFIX, SettlementSettings
from purchase_svc.settlement_worker import SettlementWorker
from purchase_svc.sweep_book import SweepBook
from purchase_svc.sweeper import Sweeper, SweepTimes
from purchase_svc.waitlist_book import WaitlistBook
from purchase_svc.waitlist_follower import WaitlistFollower

log = get_logger(__name__)

_SUMMARY_INTERVAL_S = 5.0
_PREFETCH_MAX = 16
_IN_HAND_S_MAX = 600
#: The sweeper, the waitlist follower, the refunder and the notes of retries never wait behind lanes for a connection.
_SWEEP_POOL_SIZE = 4


@dataclass(frozen=True)
class Running:
    """A settlement worker at work."""

    #: gRPC port bound; health only.
    port: int
    settlement: Settlement
    worker: SettlementWorker
    sweeper: Sweeper
    #: Set when a task it needs has failed.
    crashed: "asyncio.Future[BaseException]"


async def _summarize(settlement: Settlement) -> None:
    """Logs every few seconds what was settled since."""
    before: Counter[str] = Counter()
    while True:
        await asyncio.sleep(_SUMMARY_INTERVAL_S)
        now = settlement.tally.copy()
        if now != before:
            log.info("settled", interval_s=_SUMMARY_INTERVAL_S, **dict(sorted((now - before).items())))
        before = now


async def _end(stop: Callable[[], None], task: "asyncio.Task[None]", grace_s: float) -> None:
    """Lets a task end by itself for ``grace_s`` seconds, then cancels it."""
    stop()
    _, late = await asyncio.wait([task], timeout=grace_s)
    if late:
        task.cancel()
        await asyncio.wait([task])


def _prefetch(pace: Pace) -> int:
    """Messages of one partition in hand: many small ones fill a batch, and even full ones are settled within minutes.

    The broker takes back what is not acked for 30 minutes.
    """
    settled = pace.rate_per_s * _IN_HAND_S_MAX
    return max(1, min(_PREFETCH_MAX, int(settled / (PARTITIONS * IDS_MAX))))


def _stale_after_s(settings: SettlementSettings, pace: Pace) -> float:
    """The time without a sign of life after which a purchase may count as lost, seconds.

    At a slow pace a partition waits longer for its next turn: at most one batch of every partition's, taken twice.
    """
    return max(settings.stale_after_ms / 1000, 2 * PARTITIONS * pace.batch_max / pace.rate_per_s)


def _new_worker(
    settings: SettlementSettings,
    pace: Pace,
    settlement: Settlement,
    book: SettlementBook,
    publisher: SettlementPublisher,
) -> SettlementWorker:
    return SettlementWorker(
        settings.amqp_url,
        partial(Lane, settlement, book, publisher),
        publisher.put_aside,
        lanes=settings.lanes,
        prefetch=_prefetch(pace),
        grace_s=settings.grace_s,
    )


@asynccontextmanager
async def running_settle(settings: SettlementSettings, transport: Transport = PLAINTEXT) -> AsyncIterator[Running]:
    """Settles, sweeps, follows the waitlist and refunds until left; then ends what is under way.

    Starts while RabbitMQ, inventory or balance are away. Raises SettingsError on an unmigrated database.
    """
    await migrations.require_migrated(settings.database_url, MIGRATIONS_FOLDER)
    pace = Pace(settings.rate_per_s, settings.burst)
    metrics = Metrics()
    async with (
        open_pool(settings.database_url, name="settle", size=settings.pool_size) as pool,
        open_pool(settings.database_url, name="sweep", size=_SWEEP_POOL_SIZE) as sweep_pool,
        open_services(settings, transport, ChannelMetrics(metrics)) as services,
        SettlementPublisher(settings.amqp_url, name="settlement retries") as publisher,
        GrpcServer(settings.listen, [], metrics=metrics, transport=transport, grace_s=1.0) as server,
        AsyncExitStack() as stack,
    ):
        book, sweep_book, retry_book = SettlementBook(pool), SweepBook(sweep_pool), SettlementBook(sweep_pool)
        settlement = Settlement(book, services, TokenBucket(pool, pace), attempts_max=settings.attempts_max)
        worker = _new_worker(settings, pace, settlement, retry_book, publisher)
        abandoned = AbandonedSearch(sweep_book, services, min_age_ms=settings.abandoned_after_ms)
        times = SweepTimes(
            settings.sweep_interval_ms / 1000, settings.unqueued_after_ms / 1000, _stale_after_s(settings, pace)
        )
        sweeper = Sweeper(retry_book, sweep_book, services, publisher, abandoned, worker, times)

        metrics.totals(
            "flashsale_settled_purchases",
            "Purchases settled by this worker, by state and reason, with the tries whose outcome was unknown",
            ("outcome",),
            lambda: {(outcome,): count for outcome, count in settlement.tally.copy().items()},
        )
        metrics.gauge(
            "flashsale_settlement_rate_max_per_s", "Purchases/s that all workers may settle", lambda: pace.rate_per_s
        )
        tasks = Background()
        stack.push_async_callback(tasks.stop)
        tasks.keep(Backlog(sweep_book, publisher, metrics).run(), "backlog")
        tasks.keep(_summarize(settlement), "summary")
        stack.push_async_callback(_end, sweeper.stop, tasks.start(sweeper.run(), "sweeper"), settings.grace_s)
        follower = WaitlistFollower(
            WaitlistBook(sweep_pool),
            sweep_book,
            retry_book,
            services,
            publisher,
            abandoned_after_s=settings.abandoned_after_ms / 1000,
        )
        refunder = Refunder(RefundBook(sweep_pool), services)
        for name, work in (("waitlist", follower.follow), ("refunds", refunder.refund)):
            rounds = LeasedRounds(name, Lease(sweep_pool, name), work)
            stack.push_async_callback(_end, rounds.stop, tasks.start(rounds.run(), name), settings.grace_s)
        # The worker's own grace time ends its lanes; what is added is for leaving the broker.
        working = tasks.start(worker.run(), "worker")
        stack.push_async_callback(_end, worker.stop, working, settings.grace_s + 5.0)
        metrics.show(settings.metrics_listen, allow_plaintext=transport.allow_plaintext)
        await server.serving()
        yield Running(server.port, settlement, worker, sweeper, tasks.crashed)


async def settle() -> None:
    """The process: settles until SIGTERM or SIGINT. Raises what broke a task of it, so that it is started anew."""
    configure_logs("settlement")
    settings = read_settings(SettlementSettings, PREFIX)
    stop = stop_signal()
    async with exporting("settlement"), running_settle(settings, read_transport()) as running:
        await until_stopped(stop, running.crashed)
