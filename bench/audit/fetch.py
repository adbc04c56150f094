"""Looks at the whole system through the services' RPCs, in the order that the rules of bench.audit.rules rely on."""

import asyncio
import time
from functools import cache
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from bench.audit.data import Account, Entry, Hold, Look, Purchase, Reservation, SaleLook, Stock, Totals
from bench.clients import Clients, call, pages
from mesh.errors import DomainError, reason_name

#: Sales looked at side by side.
_SALES_AT_ONCE = 4
#: How long a gate may be away before the look goes on without its reading, seconds.
_GATE_PATIENCE_S = 5.0
_STATES_WITH_GATE = (inventory.SALE_STATE_OPEN, inventory.SALE_STATE_SOLD_OUT, inventory.SALE_STATE_PAUSED)
_GATE_AWAY = (ErrorReason.ERROR_REASON_UNAVAILABLE, ErrorReason.ERROR_REASON_STOCK_RECALIBRATING)


@cache
def _name(kind: Any, prefix: str, number: int) -> str:
    return str(kind.Name(number)).removeprefix(prefix)


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


def _reason(number: int) -> str:
    return reason_name(number) if number else ""


async def _purchases(clients: Clients) -> tuple[Purchase, ...]:
    found = []
    async for page in pages(clients.purchase.ListPurchases, purchase.ListPurchasesRequest()):
        found += [
            Purchase(
                item.purchase_id,
                item.user_id,
                item.sale_id,
                item.request_id,
                item.quantity,
                item.amount.amount_minor,
                item.amount.currency_code,
                _name(purchase.PurchaseState, "PURCHASE_STATE_", item.state),
                _reason(item.reason),
                tuple(item.share_numbers),
                _seconds(item.update_time),
            )
            for item in page.purchases
        ]
        await asyncio.sleep(0)
    return tuple(found)


async def _reservations(clients: Clients, sale_id: str) -> tuple[Reservation, ...]:
    found = []
    request = inventory.ListReservationsRequest(sale_id=sale_id)
    async for page in pages(clients.inventory.ListReservations, request):
        found += [
            Reservation(
                item.reservation_id,
                item.user_id,
                item.sale_id,
                item.request_id,
                item.quantity,
                _name(inventory.ReservationState, "RESERVATION_STATE_", item.state),
                tuple(item.share_numbers),
                _seconds(item.create_time),
            )
            for item in page.reservations
        ]
    return tuple(found)


async def _holds(clients: Clients) -> tuple[Hold, ...]:
    found = []
    async for page in pages(clients.balance.ListHolds, balance.ListHoldsRequest()):
        found += [
            Hold(
                item.hold_id,
                item.user_id,
                item.amount.amount_minor,
                item.amount.currency_code,
                item.beneficiary,
                _name(balance.HoldState, "HOLD_STATE_", item.state),
                _seconds(item.create_time),
            )
            for item in page.holds
        ]
    return tuple(found)


async def _entries(clients: Clients, sale_id: str) -> tuple[Entry, ...]:
    found = []
    request = balance.ListLedgerEntriesRequest(account=f"sale:{sale_id}")
    async for page in pages(clients.balance.ListLedgerEntries, request):
        found += [
            Entry(
                item.transfer_id,
                item.amount.amount_minor,
                item.amount.currency_code,
                _name(balance.EntryKind, "ENTRY_KIND_", item.kind),
            )
            for item in page.entries
        ]
    return tuple(found)


async def _accounts(clients: Clients) -> tuple[Account, ...]:
    found = []
    async for page in pages(clients.balance.ListAccounts, balance.ListAccountsRequest()):
        found += [
            Account(item.user_id, item.currency_code, item.balance_minor, item.held_minor) for item in page.accounts
        ]
    return tuple(found)


def _stock(reading: inventory.Stock) -> Stock:
    return Stock(reading.available, reading.reserved, reading.sold, reading.total, reading.open)


async def read_gate(clients: Clients, sale_id: str, patience_s: float = _GATE_PATIENCE_S) -> Stock | None:
    """The gate's reading; None when it gave none for ``patience_s`` seconds. Raises DomainError for all else."""
    request = inventory.GetStockRequest(sale_id=sale_id, source=inventory.STOCK_SOURCE_GATE)
    try:
        return _stock((await call(clients.inventory.GetStock, request, patience_s=patience_s)).stock)
    except DomainError as error:
        if error.reason in _GATE_AWAY:
            return None
        raise


async def _sale(clients: Clients, sale: inventory.Sale) -> SaleLook:
    # A gate that nobody may buy at any more need not be there; do not wait for it.
    patience_s = _GATE_PATIENCE_S if sale.state in _STATES_WITH_GATE else 0.0
    before = await read_gate(clients, sale.sale_id, patience_s)
    reservations, entries = await asyncio.gather(_reservations(clients, sale.sale_id), _entries(clients, sale.sale_id))
    request = inventory.GetStockRequest(sale_id=sale.sale_id, source=inventory.STOCK_SOURCE_BOOK)
    book = await call(clients.inventory.GetStock, request)
    return SaleLook(
        sale_id=sale.sale_id,
        name=sale.display_name,
        state=_name(inventory.SaleState, "SALE_STATE_", sale.state),
        unit_price_minor=sale.unit_price.amount_minor,
        currency_code=sale.unit_price.currency_code,
        total=sale.total,
        gate_before=before,
        gate_after=await read_gate(clients, sale.sale_id, patience_s),
        book=_stock(book.stock),
        reservations=reservations,
        entries=entries,
    )


async def _sales(clients: Clients) -> tuple[SaleLook, ...]:
    slots = asyncio.Semaphore(_SALES_AT_ONCE)

    async def one(sale: inventory.Sale) -> SaleLook:
        async with slots:
            return await _sale(clients, sale)

    listed = [
        sale async for page in pages(clients.inventory.ListSales, inventory.ListSalesRequest()) for sale in page.sales
    ]
    return tuple(await asyncio.gather(*(one(sale) for sale in listed)))


async def look(clients: Clients, settlement_rate_per_s: float) -> Look:
    """Reads everything once. Purchases first: what a final purchase demands must then be there. Raises DomainError when
    a service stays away."""
    now_s = time.time()
    purchases = await _purchases(clients)
    holds, accounts, sales, books = await asyncio.gather(
        _holds(clients),
        _accounts(clients),
        _sales(clients),
        call(clients.balance.CheckBooks, balance.CheckBooksRequest()),
    )
    return Look(
        now_s=now_s,
        sales=sales,
        purchases=purchases,
        holds=holds,
        accounts=accounts,
        totals=tuple(
            Totals(
                item.currency_code,
                item.entries_sum_minor,
                item.balances_sum_minor,
                item.customer_entries_sum_minor,
                item.held_sum_minor,
                item.open_holds_sum_minor,
            )
            for item in books.totals
        ),
        wrong_accounts=tuple(f"{item.user_id} {item.currency_code}" for item in books.wrong_accounts),
        wrong_transfers=tuple(books.wrong_transfers),
        settlement_rate_per_s=settlement_rate_per_s,
    )
