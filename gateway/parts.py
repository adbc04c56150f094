"""What the application is made of."""

import asyncio
from dataclasses import dataclass

from gateway.buying import Buying
from gateway.following import StockFollowers
from gateway.metrics import GatewayMetrics
from gateway.operating import Operating
from gateway.overview import Overview
from gateway.reading import Reading
from gateway.streams import StockStreams
from gateway.tokens import TokenChecker
from gateway.upstream import Upstream
from gateway.user_rate import UserRate


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that answers a request; each part bounds itself."""

    tokens: TokenChecker
    user_rate: UserRate
    followers: StockFollowers
    buying: Buying
    reading: Reading
    streams: StockStreams
    operating: Operating
    overview: Overview
    upstream: Upstream
    metrics: GatewayMetrics
    #: Set when no more requests are wanted, though they are still answered: each answer is its connection's last.
    ending: asyncio.Event
    draining: asyncio.Event
