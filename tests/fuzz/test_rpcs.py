"""Every RPC of the running system, found by reflection: whatever is asked, the answer is one that the contract knows,
no service ends, and the promises about money and stock hold afterwards."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import DOMAIN
from mesh.peer_limits import CHANNEL_LIMITS, MESSAGE_BYTES_MAX
from stack.peers import open_peer_channel
from tests.fuzz.effort import effort
from tests.fuzz.reflected import Method, methods_of
from tests.fuzz.requests import broken, messages
from tests.support.servers import MeshStack

_C = grpc.StatusCode
#: What the contract answers to what it refuses. Not among them: INTERNAL and UNKNOWN, which are faults of ours, and
#: DEADLINE_EXCEEDED, which is a call that hangs.
REFUSALS = {
    *(_C.INVALID_ARGUMENT, _C.NOT_FOUND, _C.ALREADY_EXISTS, _C.FAILED_PRECONDITION, _C.PERMISSION_DENIED),
    *(_C.RESOURCE_EXHAUSTED, _C.UNAVAILABLE),
}
_CALL_S_MAX = 20.0
_EUR = "EUR"


@dataclass
class Target:
    """The system, and what is in it. Each method is called as somebody who may call it."""

    channels: dict[str, grpc.aio.Channel]
    methods: list[tuple[str, Method]]
    known: dict[str, list[str]]


@pytest.fixture(scope="module")
def fuzzed_stack() -> Iterator[MeshStack]:
    """One of its own: what is done here is nothing that others should find."""
    with MeshStack() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def target(fuzzed_stack: MeshStack) -> AsyncIterator[Target]:
    services = ("inventory", "balance", "purchase")
    channels = {
        service: open_peer_channel(fuzzed_stack.environment, service, options=CHANNEL_LIMITS) for service in services
    }
    try:
        methods = [(name, each) for name, channel in channels.items() for each in await methods_of(channel)]
        yield Target(channels, methods, await _furnished(channels))
    finally:
        for channel in channels.values():
            await channel.close()


async def _furnished(channels: dict[str, grpc.aio.Channel]) -> dict[str, list[str]]:
    """Users with money, sales that are open, and purchases on their way; their ids by the name of a field."""
    users = [f"fuzz-{number}" for number in range(4)]
    balances: Any = BalanceServiceStub(channels["balance"])
    inventories: Any = InventoryServiceStub(channels["inventory"])
    purchases: Any = PurchaseServiceStub(channels["purchase"])
    keys = [balance.AccountKey(user_id=user, currency_code=_EUR) for user in users]
    await balances.BatchCreateAccounts(balance.BatchCreateAccountsRequest(accounts=keys), timeout=20)
    for user in users:
        money = Money(amount_minor=1_000_000, currency_code=_EUR)
        await balances.Deposit(
            balance.DepositRequest(request_id=f"seed {user}", user_id=user, amount=money), timeout=20
        )
    sales = []
    for number in range(3):
        terms = inventory.CreateSaleRequest(
            request_id=f"sale {number}",
            display_name="Fuzzed",
            unit_price=Money(amount_minor=10, currency_code=_EUR),
            total=1_000,
            per_user_limit=500,
            per_purchase_limit=10,
        )
        sales.append((await inventories.CreateSale(terms, timeout=20)).sale.sale_id)
        if number:
            await inventories.OpenSale(inventory.OpenSaleRequest(sale_id=sales[-1]), timeout=20)
    wishes = [
        purchase.CreatePurchaseRequest(request_id=f"r{number}", user_id=users[number % 4], sale_id=sales[1], quantity=1)
        for number in range(12)
    ]
    answer = await purchases.BatchCreatePurchases(
        purchase.BatchCreatePurchasesRequest(requests=wishes), timeout=20, wait_for_ready=True
    )
    ids = [each.purchase_id for each in answer.outcomes if each.purchase_id]
    assert len(ids) == len(wishes)
    known = {"user_id": users, "sale_id": sales, "request_id": ["r1", "r2", "fuzz"], "currency_code": [_EUR, "USD"]}
    known |= dict.fromkeys(("purchase_id", "reservation_id", "hold_id"), ids)
    return known | {"beneficiary": sales, "page_token": ["", "", *ids]}


def _complaint(error: grpc.aio.AioRpcError) -> str:
    """What is wrong with a refusal; empty when nothing is."""
    if error.code() not in REFUSALS:
        return f"{error.code().name}: {error.details()}"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    details = status.details if status is not None else []
    if not any(each.Unpack(info) for each in details) or info.domain != DOMAIN:
        return f"{error.code().name} without ErrorInfo: {error.details()}"
    if info.reason == "PERMISSION_DENIED":
        return "nobody may call it"
    if error.code() in (_C.UNAVAILABLE, _C.RESOURCE_EXHAUSTED) and not any(each.Unpack(retry) for each in details):
        return f"{error.code().name} without RetryInfo"
    return ""


async def _call(target: Target, name: str, method: Method, request: bytes) -> None:
    if len(request) > MESSAGE_BYTES_MAX:
        return
    try:
        answer = await method.call(target.channels[name], request, _CALL_S_MAX)
    except grpc.aio.AioRpcError as error:
        complaint = _complaint(error)
        assert not complaint, f"{method.path}: {complaint}"
        return
    if answer is not grpc.aio.EOF:
        method.answer_class.FromString(answer)


@effort(400)
@given(data=st.data())
async def test_what_is_asked_by_the_contract_s_form_is_answered_by_the_contract(target: Target, data: Any) -> None:
    name, method = data.draw(st.sampled_from(target.methods), label="method")
    request = data.draw(messages(method.descriptor.input_type, target.known), label="request")
    await _call(target, name, method, request.SerializeToString())


@effort(200)
@given(data=st.data())
async def test_what_has_no_form_is_answered_too(target: Target, data: Any) -> None:
    name, method = data.draw(st.sampled_from(target.methods), label="method")
    request = data.draw(messages(method.descriptor.input_type, target.known), label="request")
    await _call(target, name, method, data.draw(broken(request.SerializeToString()), label="octets"))


async def test_every_method_has_been_found(target: Target) -> None:
    found = {method.path for _, method in target.methods}
    for service in (
        inventory.DESCRIPTOR.services_by_name["InventoryService"],
        balance.DESCRIPTOR.services_by_name["BalanceService"],
        purchase.DESCRIPTOR.services_by_name["PurchaseService"],
    ):
        assert {f"/{service.full_name}/{each.name}" for each in service.methods} <= found


async def test_money_and_stock_are_right_after_all_that(target: Target) -> None:
    """Runs last in this file."""
    balances: Any = BalanceServiceStub(target.channels["balance"])
    inventories: Any = InventoryServiceStub(target.channels["inventory"])
    books = await balances.CheckBooks(balance.CheckBooksRequest(), timeout=60)
    assert not books.wrong_transfers
    assert not books.wrong_accounts
    for totals in books.totals:
        assert totals.entries_sum_minor == 0
        assert totals.held_sum_minor == totals.open_holds_sum_minor
    for sale_id in target.known["sale_id"]:
        stock = (
            await inventories.GetStock(
                inventory.GetStockRequest(sale_id=sale_id, source=inventory.STOCK_SOURCE_BOOK), timeout=20
            )
        ).stock
        assert stock.available + stock.reserved + stock.sold == stock.total
        assert min(stock.available, stock.reserved, stock.sold) >= 0
    # And the system still sells.
    keys = [balance.AccountKey(user_id="after", currency_code=_EUR)]
    await balances.BatchCreateAccounts(balance.BatchCreateAccountsRequest(accounts=keys), timeout=20)
    terms = inventory.CreateSaleRequest(
        request_id=uuid.uuid4().hex,
        display_name="After",
        unit_price=Money(amount_minor=10, currency_code=_EUR),
        total=1,
        per_user_limit=1,
        per_purchase_limit=1,
    )
    sale_id = (await inventories.CreateSale(terms, timeout=20)).sale.sale_id
    await inventories.OpenSale(inventory.OpenSaleRequest(sale_id=sale_id), timeout=20)
    purchases: Any = PurchaseServiceStub(target.channels["purchase"])
    wish = purchase.CreatePurchaseRequest(request_id="after", user_id="after", sale_id=sale_id, quantity=1)
    assert (await purchases.CreatePurchase(wish, timeout=20)).purchase.state == purchase.PURCHASE_STATE_RESERVED
