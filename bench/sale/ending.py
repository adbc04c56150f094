"""How a sale is ended by its runner: refunds for a part of the owners, then the close, the end of the line, and the
final statement."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from bench.audit.fetch import read_gate
from bench.clients import Clients, call, pages
from bench.load.asking import send_once
from bench.load.http_answers import facts_of, retry_delay_ms
from bench.load.plan import Buyer, is_among
from bench.load.process import LoadError
from bench.sale.follow import Following, read_summary
from mesh.errors import reason_name

#: Refunds asked for at once, and sends of one.
_REFUNDS_AT_ONCE, _ATTEMPTS_MAX = 32, 20
_LOOK_S = 0.1
#: Longest time from the close to the end of the line, seconds, and how many more for each 1,000 who waited.
_CLOSE_S_MAX, _CLOSE_S_PER_1000 = 20.0, 1.0
_COME_AGAIN = (429, 503, 504)
#: Who is on record as having closed the sale.
ACTOR = "make sale"


@dataclass(frozen=True)
class Statement:
    """The final statement, as the Purchase Service gave it."""

    final: bool
    sold_units: int
    sold_purchases: int
    captured_minor: int
    refunded_minor: int
    unfinished: int
    non_wins: Mapping[str, int]
    """Purchases that won nothing: by reason, or by state when there is none."""
    words: Mapping[str, str]
    """The same in plain words."""
    listed: int
    """How many of them its pages listed one by one."""


async def refund_some(clients: Clients, sale_id: str, gateway_url: str, buyers: Sequence[Buyer], share: float) -> int:
    """Lets the part ``share`` (0 to 1) of those who own a share now ask for their money back; how many did.

    Raises LoadError when one is refused or stays without an answer.
    """
    tokens = {buyer.user_id: buyer.token for buyer in buyers}
    request = purchase.ListPurchasesRequest(sale_id=sale_id, state=purchase.PURCHASE_STATE_CONFIRMED)
    owners = [item async for page in pages(clients.purchase.ListPurchases, request) for item in page.purchases]
    chosen = [item for index, item in enumerate(owners) if is_among(index, share)]
    slots = asyncio.Semaphore(_REFUNDS_AT_ONCE)

    async def one(item: purchase.Purchase) -> None:
        async with slots:
            await _refund(gateway_url, item.purchase_id, tokens[item.user_id])

    await asyncio.gather(*(one(item) for item in chosen))
    return len(chosen)


async def _refund(gateway_url: str, purchase_id: str, token: str) -> None:
    """One refund, sent again as long as the gateway asks for it."""
    parts = urlsplit(gateway_url)
    assert parts.hostname is not None
    assert parts.port is not None
    request = (
        f"POST /v1/purchases/{purchase_id}/refund HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
    ).encode("ascii")
    for _ in range(_ATTEMPTS_MAX):
        answer = await send_once(request, parts.hostname, parts.port, f"the refund of {purchase_id}")
        facts = facts_of(answer.body)
        if answer.status in (200, 202):
            return
        if answer.status not in _COME_AGAIN:
            raise LoadError(f"the refund of {purchase_id} was told {answer.status} {facts.reason}")
        await asyncio.sleep(retry_delay_ms(answer, facts) / 1000)
    raise LoadError(f"the refund of {purchase_id} was put off {_ATTEMPTS_MAX} times")


async def close(clients: Clients, sale_id: str, now: Following) -> str:
    """Closes the sale and returns when nobody waits in its line any more; "" or what was missing when the time was up.

    Raises DomainError when a service stays away.
    """
    waiting = now.in_line
    await call(clients.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=sale_id, actor=ACTOR))
    deadline = time.monotonic() + _CLOSE_S_MAX + _CLOSE_S_PER_1000 * waiting / 1000
    while True:
        await read_summary(clients, sale_id, now)
        stock = await read_gate(clients, sale_id)
        now.stock = stock or now.stock
        if not now.in_line and not now.unfinished and stock is not None and not stock.waiting:
            return ""
        if time.monotonic() > deadline:
            left = "the gate gives no reading" if stock is None else f"{stock.waiting} in line"
            return f"not over after its close: {left}, {now.in_line} purchases WAITLISTED"
        await asyncio.sleep(_LOOK_S)


async def state_all(clients: Clients, sale_id: str) -> Statement:
    """The sale's statement with every one of its pages. Raises DomainError."""
    listed = 0
    first = None
    async for page in pages(clients.purchase.GetSaleStatement, purchase.GetSaleStatementRequest(sale_id=sale_id)):
        first = first or page
        listed += len(page.non_wins)
    assert first is not None
    return Statement(
        final=first.final,
        sold_units=first.sold_units,
        sold_purchases=first.sold_purchases,
        captured_minor=first.captured.amount_minor,
        refunded_minor=first.refunded.amount_minor,
        unfinished=first.unfinished_purchases,
        non_wins={_name(item): item.purchases for item in first.non_win_counts},
        words={_name(item): item.words for item in first.non_win_counts},
        listed=listed,
    )


def _name(item: purchase.NonWinCount) -> str:
    if item.reason:
        return reason_name(item.reason)
    return purchase.PurchaseState.Name(item.state).removeprefix("PURCHASE_STATE_")
