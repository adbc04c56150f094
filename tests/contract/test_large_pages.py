"""Lists of rows as large as rows can be: each page fits into what a client receives, and the next goes on after it."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import pytest_asyncio
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from mesh.page_token import PAGE_SIZE_MAX
from mesh.pages import PAGE_BYTES_MAX
from tests.support.balance_service import SALE, BalanceClient, balance_service, eur, hold_item
from tests.support.inventory_rig import OK, InventoryRig, inventory_rig, item
from tests.support.servers import Servers
from tests.support.waitlist_rig import ask, joining

T = TypeVar("T")

#: As many as make more than a page of 2 MB, and how many of them one request has room for.
ACCOUNTS, ACCOUNTS_AT_ONCE = 4_800, 1_200
WISHES, WISHES_AT_ONCE = 2_400, 800


def wide(number: int) -> str:
    """A name as large as one may be: 128 characters, nearly all of them four bytes."""
    return f"{number:06}" + "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL X}" * 122


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


async def walk(method: Any, request: Any, field: str) -> list[Any]:
    """Every row of a list, by the largest pages there are; each must fit, and be full but for the last."""
    rows: list[Any] = []
    sizes = []
    request.page_size = PAGE_SIZE_MAX
    while True:
        answer = await method(request, timeout=20)
        rows += getattr(answer, field)
        sizes.append(answer.ByteSize())
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    # A few bytes go before each row.
    assert max(sizes) < PAGE_BYTES_MAX * 1.02, sizes
    assert min(sizes[:-1]) > PAGE_BYTES_MAX * 0.98, sizes
    return rows


@pytest_asyncio.fixture(scope="module")
async def bank(servers: Servers) -> AsyncIterator[BalanceClient]:
    """Each of the wide has one euro, of which half is held."""
    async with balance_service(servers.migrated_database("balance")) as client:
        users = [wide(number) for number in range(ACCOUNTS)]
        for some in batches(users, ACCOUNTS_AT_ONCE):
            keys = [balance.AccountKey(user_id=user, currency_code="EUR") for user in some]
            await client.stub.BatchCreateAccounts(balance.BatchCreateAccountsRequest(accounts=keys))
            deposits = [balance.DepositItem(request_id=f"d{user[:6]}", user_id=user, amount=eur(100)) for user in some]
            await client.stub.BatchDeposit(balance.BatchDepositRequest(deposits=deposits))
        for some in batches(users, 1_000):
            assert set(await client.place(*(hold_item(user, 50) for user in some))) == {("", "HELD")}
        yield client


async def test_every_account_is_listed_once_in_pages_that_fit(bank: BalanceClient) -> None:
    accounts = await walk(bank.stub.ListAccounts, balance.ListAccountsRequest(), "accounts")
    assert [account.user_id for account in accounts] == [wide(number) for number in range(ACCOUNTS)]
    assert {(account.balance_minor, account.held_minor) for account in accounts} == {(100, 50)}


async def test_every_hold_is_listed_once_in_pages_that_fit(bank: BalanceClient) -> None:
    holds = await walk(bank.stub.ListHolds, balance.ListHoldsRequest(beneficiary=SALE), "holds")
    assert sorted(hold.user_id for hold in holds) == [wide(number) for number in range(ACCOUNTS)]
    ids = [hold.hold_id for hold in holds]
    assert ids == sorted(set(ids))


async def test_every_entry_is_listed_once_in_pages_that_fit(bank: BalanceClient) -> None:
    entries = await walk(bank.stub.ListLedgerEntries, balance.ListLedgerEntriesRequest(), "entries")
    numbers = [entry.entry_id for entry in entries]
    assert numbers == sorted(set(numbers))
    booked = [entry.account for entry in entries if entry.account.startswith("user:")]
    assert sorted(booked) == [f"user:{wide(number)}" for number in range(ACCOUNTS)]
    assert sum(entry.amount.amount_minor for entry in entries) == 0


@pytest_asyncio.fixture(scope="module")
async def rig(servers: Servers) -> AsyncIterator[InventoryRig]:
    async with inventory_rig(servers) as running:
        yield running


async def test_every_reservation_is_listed_once_in_pages_that_fit(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(WISHES)
    wishes = [item(sale_id, wide(number), wide(number)) for number in range(WISHES)]
    for some in batches(wishes, WISHES_AT_ONCE):
        assert set(await rig.reserve(some)) == {OK}
    found = await walk(
        rig.inventory.ListReservations, inventory.ListReservationsRequest(sale_id=sale_id), "reservations"
    )
    assert sorted(each.user_id for each in found) == [wish.user_id for wish in wishes]


async def test_everybody_in_line_is_listed_once_in_pages_that_fit(rig: InventoryRig) -> None:
    sale_id = await rig.open_sale(1)
    assert await rig.reserve([item(sale_id, "holder")]) == [OK]
    wishes = [joining(sale_id, wide(number), wide(number)) for number in range(WISHES)]
    for some in batches(wishes, WISHES_AT_ONCE):
        assert {str(answer).split()[0] for answer in await ask(rig, some)} == {"waits"}
    line = await walk(rig.inventory.ListWaitlist, inventory.ListWaitlistRequest(sale_id=sale_id), "entries")
    assert [entry.user_id for entry in line] == [wish.user_id for wish in wishes]
