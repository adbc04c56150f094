"""How much waits to be settled, and for how long: looked at now and then, for the metrics."""

import asyncio

from mesh.errors import DomainError
from mesh.metrics import Metrics
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.sweep_book import SweepBook, Waiting

#: Between two looks, seconds; more when a look takes long, for it counts what waits: one part in so many of the time.
_INTERVAL_S, _SHARE = 5.0, 100


class Backlog:
    """Reads what waits in SQL and in the broker. What cannot be read is not shown."""

    def __init__(self, book: SweepBook, publisher: SettlementPublisher, metrics: Metrics) -> None:
        self._book = book
        self._publisher = publisher
        self._waiting: Waiting | None = None
        self._depths: tuple[int, int] | None = None
        metrics.gauges(
            "flashsale_settlement_purchases",
            "Purchases that wait to be settled, that are parked, and that are being refunded; of all workers",
            ("state",),
            lambda: (
                {("waiting",): w.purchases, ("parked",): w.parked, ("refunding",): w.refunding}
                if (w := self._waiting)
                else {}
            ),
        )
        metrics.gauges(
            "flashsale_settlement_oldest_seconds",
            "Age of the oldest purchase that waits to be settled",
            (),
            lambda: {(): w.oldest_s} if (w := self._waiting) else {},
        )
        metrics.gauges(
            "flashsale_refund_oldest_seconds",
            "Time since the oldest refund was asked for that is not done",
            (),
            lambda: {(): w.oldest_refund_s} if (w := self._waiting) else {},
        )
        metrics.gauges(
            "flashsale_settlement_messages",
            "Messages in RabbitMQ: that wait to be settled, and dead letters",
            ("queue",),
            lambda: {("settlement",): d[0], ("dead letters",): d[1]} if (d := self._depths) else {},
        )

    async def run(self) -> None:
        """Looks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.look()
            await asyncio.sleep(max(_INTERVAL_S, _SHARE * (loop.time() - began)))

    async def look(self) -> None:
        """Looks once."""
        try:
            self._waiting = await self._book.waiting()
        except DomainError:
            self._waiting = None
        try:
            self._depths = await self._publisher.depths()
        except DomainError:
            self._depths = None
