"""Every call of the Balance Service over gRPC, as its contract says, with what it refuses."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money

from mesh.errors import DomainError, from_rpc_error
from tests.support.balance_service import (
    SALE,
    BalanceClient,
    assert_right,
    balance_service,
    eur,
    fresh,
    hold_item,
    new_id,
)
from tests.support.servers import Servers

R = ErrorReason
OK = ErrorReason.ERROR_REASON_UNSPECIFIED


@pytest_asyncio.fixture(scope="module")
async def bank(servers: Servers) -> AsyncIterator[BalanceClient]:
    async with balance_service(servers.migrated_database("balance")) as client:
        yield client


async def refusal(call: Any) -> DomainError:
    """What a call is refused for."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_an_account_is_opened_once_and_empty(bank: BalanceClient) -> None:
    user = fresh("user")
    request = pb.CreateAccountRequest(user_id=user, currency_code="EUR")
    empty = pb.Account(user_id=user, currency_code="EUR")
    assert (await bank.stub.CreateAccount(request)).account == empty
    await bank.deposit(user, 5)
    assert (await bank.stub.CreateAccount(request)).account == pb.Account(
        user_id=user, currency_code="EUR", balance_minor=5
    )


async def test_a_batch_of_accounts_counts_the_new_ones(bank: BalanceClient) -> None:
    keys = [pb.AccountKey(user_id=fresh("user"), currency_code=code) for code in ("EUR", "USD", "EUR")]
    keys.append(keys[0])
    assert (await bank.stub.BatchCreateAccounts(pb.BatchCreateAccountsRequest(accounts=keys))).created == 3
    assert (await bank.stub.BatchCreateAccounts(pb.BatchCreateAccountsRequest(accounts=keys))).created == 0


async def test_a_deposit_is_booked_once_however_often_it_is_sent(bank: BalanceClient) -> None:
    [user] = await bank.fund(0)
    for _ in range(3):
        assert (await bank.deposit(user, 250, "deposit-once")).balance_minor == 250
    error = await refusal(bank.deposit(user, 251, "deposit-once"))
    assert (error.reason, error.code) == (R.ERROR_REASON_REQUEST_ID_REUSED, grpc.StatusCode.ALREADY_EXISTS)
    assert await bank.money(user) == (250, 0)


async def test_a_deposit_to_nobody_is_refused_and_the_refusal_stands(bank: BalanceClient) -> None:
    user = fresh("user")
    error = await refusal(bank.deposit(user, 1, "deposit-to-nobody"))
    assert (error.reason, error.code) == (R.ERROR_REASON_ACCOUNT_NOT_FOUND, grpc.StatusCode.NOT_FOUND)
    await bank.stub.CreateAccount(pb.CreateAccountRequest(user_id=user, currency_code="EUR"))
    assert (await refusal(bank.deposit(user, 1, "deposit-to-nobody"))).reason == R.ERROR_REASON_ACCOUNT_NOT_FOUND
    assert await bank.money(user) == (0, 0)


async def test_a_batch_of_deposits_answers_item_by_item(bank: BalanceClient) -> None:
    [user] = await bank.fund(0)
    items = [
        pb.DepositItem(request_id="batch-1", user_id=user, amount=eur(1)),
        pb.DepositItem(request_id="", user_id=user, amount=eur(1)),
        pb.DepositItem(request_id="batch-2", user_id=fresh("nobody"), amount=eur(1)),
        pb.DepositItem(request_id="batch-1", user_id=user, amount=eur(1)),
        pb.DepositItem(request_id="batch-1", user_id=user, amount=eur(2)),
        pb.DepositItem(request_id="batch-3", user_id=user, amount=eur(0)),
        pb.DepositItem(request_id="batch-4", user_id=user, amount=Money(amount_minor=1, currency_code="eur")),
        pb.DepositItem(request_id="batch-5", user_id=user, amount=eur(10)),
    ]
    invalid = R.ERROR_REASON_INVALID_ARGUMENT
    expected = [OK, invalid, R.ERROR_REASON_ACCOUNT_NOT_FOUND, OK, R.ERROR_REASON_REQUEST_ID_REUSED]
    expected += [invalid, invalid, OK]
    for _ in range(2):
        answer = await bank.stub.BatchDeposit(pb.BatchDepositRequest(deposits=items))
        assert [outcome.reason for outcome in answer.outcomes] == expected
        assert [outcome.request_id for outcome in answer.outcomes] == [item.request_id for item in items]
    assert await bank.money(user) == (11, 0)


async def test_money_is_withdrawn_once_and_only_if_it_is_there(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    for _ in range(2):
        assert (await bank.withdraw(user, 30, "withdraw-once")).balance_minor == 70
    error = await refusal(bank.withdraw(user, 71))
    assert (error.reason, error.metadata) == (R.ERROR_REASON_INSUFFICIENT_FUNDS, {"available_minor": "70"})
    assert error.code == grpc.StatusCode.FAILED_PRECONDITION
    assert (await refusal(bank.withdraw(user, 31, "withdraw-once"))).reason == R.ERROR_REASON_REQUEST_ID_REUSED
    assert (await refusal(bank.withdraw(fresh("nobody"), 1))).reason == R.ERROR_REASON_ACCOUNT_NOT_FOUND


async def test_held_money_cannot_be_withdrawn(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    item = hold_item(user, 60)
    assert await bank.place(item) == [("", "HELD")]
    assert await bank.money(user) == (100, 60)
    assert (await refusal(bank.withdraw(user, 41))).reason == R.ERROR_REASON_INSUFFICIENT_FUNDS
    assert (await bank.withdraw(user, 40)).balance_minor == 60
    assert await bank.capture(item.hold_id) == [("", "CAPTURED")]
    assert await bank.money(user) == (0, 0)


async def test_balances_are_read_one_by_one_and_together(bank: BalanceClient) -> None:
    users = await bank.fund(7, users=3)
    keys = [pb.AccountKey(user_id=user, currency_code="EUR") for user in (*users, fresh("nobody"), users[0])]
    answer = await bank.stub.BatchGetBalances(pb.BatchGetBalancesRequest(accounts=keys))
    assert [account.user_id for account in answer.accounts] == users
    assert {account.balance_minor for account in answer.accounts} == {7}
    nobody = pb.GetBalanceRequest(user_id=fresh("nobody"), currency_code="EUR")
    assert (await refusal(bank.stub.GetBalance(nobody))).reason == R.ERROR_REASON_ACCOUNT_NOT_FOUND


async def test_an_account_is_told_apart_by_currency(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    dollars = Money(amount_minor=10, currency_code="USD")
    assert await bank.place(hold_item(user, 0, amount=dollars)) == [("ACCOUNT_NOT_FOUND", "REFUSED")]


async def test_a_hold_is_decided_once(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    held, refused = hold_item(user, 80), hold_item(user, 30)
    stranger = hold_item(fresh("nobody"), 1)
    expected = [("", "HELD"), ("INSUFFICIENT_FUNDS", "REFUSED"), ("ACCOUNT_NOT_FOUND", "REFUSED")]
    assert await bank.place(held, refused, stranger) == expected
    await bank.deposit(user, 1_000)
    await bank.stub.CreateAccount(pb.CreateAccountRequest(user_id=stranger.user_id, currency_code="EUR"))
    await bank.deposit(stranger.user_id, 1_000)
    assert await bank.place(held, refused, stranger) == expected
    assert await bank.place(*reversed([held, refused, stranger])) == expected[::-1]
    assert await bank.money(user) == (1_100, 80)


async def test_a_hold_id_with_other_contents_is_refused(bank: BalanceClient) -> None:
    [user, other] = await bank.fund(100, users=2)
    item = hold_item(user, 10)
    changed = [
        hold_item(user, 11, item.hold_id),
        hold_item(other, 10, item.hold_id),
        hold_item(user, 10, item.hold_id, beneficiary="other"),
        hold_item(user, 10, item.hold_id, amount=Money(amount_minor=10, currency_code="USD")),
    ]
    reused = ("REQUEST_ID_REUSED", "HELD")
    assert await bank.place(item, *changed, item) == [("", "HELD"), *[reused] * 4, ("", "HELD")]
    assert await bank.place(*changed) == [reused] * 4
    assert await bank.money(user) == (100, 10)
    assert await bank.money(other) == (100, 0)


async def test_one_bad_hold_never_fails_its_neighbours(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    good = [hold_item(user, 10), hold_item(user, 10)]
    bad = [
        hold_item(user, 10, "not-a-uuid"),
        hold_item("", 10),
        hold_item("a" * 129, 10),
        hold_item("a\nb", 10),
        hold_item(user, 0),
        hold_item(user, -5),
        hold_item(user, 10**12 + 1),
        hold_item(user, 1, beneficiary=""),
        hold_item(user, 1, amount=Money(amount_minor=1)),
        pb.PlaceHoldItem(hold_id=new_id()),
    ]
    answer = await bank.place(good[0], *bad, good[1])
    assert answer == [("", "HELD"), *[("INVALID_ARGUMENT", "")] * len(bad), ("", "HELD")]
    assert await bank.place(*bad) == [("INVALID_ARGUMENT", "")] * len(bad)


async def test_a_hold_id_is_the_same_in_capitals(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    item = hold_item(user, 10)
    shouted = item.hold_id.upper()
    assert await bank.place(item, hold_item(user, 10, shouted)) == [("", "HELD")] * 2
    answer = await bank.stub.BatchCaptureHolds(pb.BatchCaptureHoldsRequest(hold_ids=[shouted, item.hold_id]))
    assert [outcome.hold_id for outcome in answer.outcomes] == [shouted, item.hold_id]
    assert await bank.money(user) == (90, 0)


async def test_captures_and_releases_answer_for_every_state(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    captured, released, refused = hold_item(user, 10), hold_item(user, 10), hold_item(user, 1_000)
    await bank.place(captured, released, refused)
    assert await bank.capture(captured.hold_id) == [("", "CAPTURED")]
    assert await bank.release(released.hold_id) == [("", "RELEASED")]
    ids = [captured.hold_id, released.hold_id, refused.hold_id, new_id(), "junk"]
    unknown = [("HOLD_NOT_FOUND", ""), ("INVALID_ARGUMENT", "")]
    for _ in range(2):
        assert await bank.capture(*ids) == [
            ("", "CAPTURED"), ("HOLD_RELEASED", "RELEASED"), ("HOLD_REFUSED", "REFUSED"), *unknown,
        ]  # fmt: skip
        assert await bank.release(*ids) == [
            ("HOLD_CAPTURED", "CAPTURED"), ("", "RELEASED"), ("", "REFUSED"), *unknown,
        ]  # fmt: skip
        assert await bank.place(captured, released, refused) == [
            ("", "CAPTURED"), ("HOLD_RELEASED", "RELEASED"), ("INSUFFICIENT_FUNDS", "REFUSED"),
        ]  # fmt: skip
    assert await bank.money(user) == (90, 0)


async def test_a_capture_is_reversed_once_and_in_full(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    item = hold_item(user, 60)
    await bank.place(item)
    error = await refusal(bank.reverse(item.hold_id))
    assert (error.code, error.metadata) == (grpc.StatusCode.FAILED_PRECONDITION, {"state": "HELD"})
    await bank.capture(item.hold_id)
    for _ in range(2):
        hold = await bank.reverse(item.hold_id)
        assert hold.state == pb.HOLD_STATE_REVERSED
        assert await bank.money(user) == (100, 0)
    assert await bank.place(item) == [("HOLD_REVERSED", "REVERSED")]
    assert await bank.capture(item.hold_id) == [("HOLD_REVERSED", "REVERSED")]
    assert await bank.release(item.hold_id) == [("HOLD_REVERSED", "REVERSED")]
    assert_right(await bank.check())


async def test_what_was_never_captured_is_not_reversed(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    released, refused = hold_item(user, 60), hold_item(user, 1_000)
    await bank.place(released, refused)
    await bank.release(released.hold_id)
    assert (await refusal(bank.reverse(released.hold_id))).reason == R.ERROR_REASON_HOLD_RELEASED
    assert (await refusal(bank.reverse(refused.hold_id))).reason == R.ERROR_REASON_HOLD_REFUSED
    assert (await refusal(bank.reverse(new_id()))).reason == R.ERROR_REASON_HOLD_NOT_FOUND
    assert (await refusal(bank.reverse("junk"))).violations[0][0] == "hold_id"


async def test_captures_are_reversed_in_a_batch_each_once_and_answered_by_itself(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=3)
    first, second = (hold_item(user, 60) for user in users[:2])
    held, released, refused = hold_item(users[2], 10), hold_item(users[2], 20), hold_item(users[2], 1_000)
    await bank.place(first, second, held, released, refused)
    await bank.capture(first.hold_id, second.hold_id)
    await bank.release(released.hold_id)
    asked = [first, held, released, refused, second, first]
    expected = [
        ("", "REVERSED"),
        ("HOLD_NOT_CAPTURED", "HELD"),
        ("HOLD_NOT_CAPTURED", "RELEASED"),
        ("HOLD_NOT_CAPTURED", "REFUSED"),
        ("", "REVERSED"),
        ("", "REVERSED"),
        ("HOLD_NOT_FOUND", ""),
        ("INVALID_ARGUMENT", ""),
    ]
    for _ in range(2):
        assert await bank.reverse_all(*(item.hold_id for item in asked), new_id(), "junk") == expected
        assert [await bank.money(user) for user in users] == [(100, 0), (100, 0), (100, 10)]
    assert (await bank.reverse(first.hold_id)).state == pb.HOLD_STATE_REVERSED
    for user in users[:2]:
        request = pb.ListLedgerEntriesRequest(account=f"user:{user}")
        booked = [entry.amount.amount_minor for entry in (await bank.stub.ListLedgerEntries(request)).entries]
        assert booked == [100, -60, 60]
    assert_right(await bank.check())
    empty = await refusal(bank.reverse_all())
    assert (empty.code, empty.violations[0][0]) == (grpc.StatusCode.INVALID_ARGUMENT, "hold_ids")


async def test_reversals_at_once_and_from_both_calls_book_the_money_back_once(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=20)
    ids = [hold_item(user, 60) for user in users]
    await bank.place(*ids)
    await bank.capture(*(item.hold_id for item in ids))
    forth, back = [item.hold_id for item in ids], [item.hold_id for item in reversed(ids)]
    await asyncio.gather(
        *(bank.reverse_all(*some) for some in (forth, back, forth, back)), *(bank.reverse(each) for each in forth)
    )
    assert {await bank.money(user) for user in users} == {(100, 0)}
    assert_right(await bank.check())


async def test_holds_are_read_by_id_in_the_order_asked_for(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    held, captured, refused = hold_item(user, 10), hold_item(user, 20), hold_item(user, 1_000)
    await bank.place(held, captured, refused)
    await bank.capture(captured.hold_id)
    asked = [refused.hold_id, new_id(), captured.hold_id, "junk", held.hold_id, captured.hold_id]
    found = await bank.get_holds(*asked)
    assert [hold.hold_id for hold in found] == [refused.hold_id, captured.hold_id, held.hold_id]
    assert [pb.HoldState.Name(hold.state) for hold in found] == [
        "HOLD_STATE_REFUSED", "HOLD_STATE_CAPTURED", "HOLD_STATE_HELD",
    ]  # fmt: skip
    assert [hold.amount.amount_minor for hold in found] == [1_000, 20, 10]
    assert [hold.HasField("end_time") for hold in found] == [True, True, False]
    assert (await refusal(bank.get_holds())).violations[0][0] == "hold_ids"


async def test_lists_give_everything_once_and_in_order(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=5)
    sale = fresh("sale")
    items = [hold_item(user, 10, beneficiary=sale) for user in users]
    await bank.place(*items)
    await bank.capture(*[item.hold_id for item in items[:3]])

    async def pages(call: Any, request: Any, field: str) -> list[Any]:
        rows: list[Any] = []
        while True:
            answer = await call(request)
            assert len(getattr(answer, field)) <= request.page_size
            rows += getattr(answer, field)
            if not answer.next_page_token:
                return rows
            request.page_token = answer.next_page_token

    holds = await pages(bank.stub.ListHolds, pb.ListHoldsRequest(beneficiary=sale, page_size=2), "holds")
    assert [hold.hold_id for hold in holds] == sorted(item.hold_id for item in items)
    open_only = pb.ListHoldsRequest(beneficiary=sale, state=pb.HOLD_STATE_HELD, page_size=1)
    assert {hold.hold_id for hold in await pages(bank.stub.ListHolds, open_only, "holds")} == {
        item.hold_id for item in items[3:]
    }
    accounts = await pages(bank.stub.ListAccounts, pb.ListAccountsRequest(page_size=3), "accounts")
    names = [account.user_id for account in accounts]
    assert names == sorted(names)
    assert set(users) <= set(names)
    request = pb.ListLedgerEntriesRequest(account=f"sale:{sale}", page_size=2)
    entries = await pages(bank.stub.ListLedgerEntries, request, "entries")
    assert [(entry.amount, entry.kind) for entry in entries] == [(eur(10), pb.ENTRY_KIND_CAPTURE)] * 3
    assert {entry.transfer_id for entry in entries} == {item.hold_id for item in items[:3]}
    everything = await pages(bank.stub.ListLedgerEntries, pb.ListLedgerEntriesRequest(page_size=7), "entries")
    assert sum(entry.amount.amount_minor for entry in everything if entry.amount.currency_code == "EUR") == 0
    assert [e.entry_id for e in everything] == sorted({e.entry_id for e in everything})


async def test_a_listed_hold_tells_its_whole_life(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    sale = fresh("sale")
    held, refused = hold_item(user, 60, beneficiary=sale), hold_item(user, 50, beneficiary=sale)
    await bank.place(held, refused)
    listed = {hold.hold_id: hold for hold in (await bank.stub.ListHolds(pb.ListHoldsRequest(beneficiary=sale))).holds}
    first = listed[held.hold_id]
    assert (first.user_id, first.amount, first.beneficiary, first.state) == (user, eur(60), sale, pb.HOLD_STATE_HELD)
    assert (first.expire_time.ToDatetime() - first.create_time.ToDatetime()).total_seconds() == 120
    assert not first.HasField("end_time")
    second = listed[refused.hold_id]
    assert (second.state, second.refusal_reason) == (pb.HOLD_STATE_REFUSED, R.ERROR_REASON_INSUFFICIENT_FUNDS)
    assert not second.HasField("expire_time")
    assert second.end_time == second.create_time == first.create_time


BAD_CALLS: list[tuple[str, Any, str]] = [
    ("BatchCreateAccounts", pb.BatchCreateAccountsRequest(), "accounts"),
    ("BatchCreateAccounts", pb.BatchCreateAccountsRequest(accounts=[pb.AccountKey()] * 10_001), "accounts"),
    ("BatchCreateAccounts", pb.BatchCreateAccountsRequest(accounts=[pb.AccountKey()] * 10_000), "accounts[0].user_id"),
    ("BatchDeposit", pb.BatchDepositRequest(), "deposits"),
    ("CreateAccount", pb.CreateAccountRequest(user_id="u"), "currency_code"),
    ("CreateAccount", pb.CreateAccountRequest(user_id=" u", currency_code="EUR"), "user_id"),
    ("Deposit", pb.DepositRequest(user_id="u", amount=eur(1)), "request_id"),
    ("Deposit", pb.DepositRequest(user_id="u", request_id="r"), "amount.amount_minor"),
    ("Deposit", pb.DepositRequest(user_id="u", request_id="r", amount=eur(10**12 + 1)), "amount.amount_minor"),
    ("Withdraw", pb.WithdrawRequest(user_id="u", request_id="r", amount=eur(-1)), "amount.amount_minor"),
    ("Withdraw", pb.WithdrawRequest(request_id="r", amount=eur(1)), "user_id"),
    ("GetBalance", pb.GetBalanceRequest(user_id="u", currency_code="EURO"), "currency_code"),
    ("BatchGetBalances", pb.BatchGetBalancesRequest(), "accounts"),
    ("BatchGetBalances", pb.BatchGetBalancesRequest(accounts=[pb.AccountKey()]), "accounts[0].user_id"),
    ("BatchPlaceHolds", pb.BatchPlaceHoldsRequest(), "holds"),
    ("BatchPlaceHolds", pb.BatchPlaceHoldsRequest(holds=[pb.PlaceHoldItem()] * 1_001), "holds"),
    ("BatchCaptureHolds", pb.BatchCaptureHoldsRequest(), "hold_ids"),
    ("BatchReleaseHolds", pb.BatchReleaseHoldsRequest(hold_ids=["x"] * 1_001), "hold_ids"),
    ("ReverseCapture", pb.ReverseCaptureRequest(), "hold_id"),
    ("ListHolds", pb.ListHoldsRequest(page_size=-1), "page_size"),
    ("ListHolds", pb.ListHoldsRequest(page_token="forged"), "page_token"),
    ("ListHolds", pb.ListHoldsRequest(state=99), "state"),  # type: ignore[arg-type]
    ("ListHolds", pb.ListHoldsRequest(beneficiary="a\tb"), "beneficiary"),
    ("ListAccounts", pb.ListAccountsRequest(page_token="AAAA"), "page_token"),
    ("ListLedgerEntries", pb.ListLedgerEntriesRequest(page_token="AAAA"), "page_token"),
    ("ListLedgerEntries", pb.ListLedgerEntriesRequest(account="user:\x00"), "account"),
    ("CheckBooks", pb.CheckBooksRequest(beneficiary=" "), "beneficiary"),
]


@pytest.mark.parametrize(("method", "request_", "field"), BAD_CALLS, ids=[f"{row[0]}-{row[2]}" for row in BAD_CALLS])
async def test_bad_input_is_refused_by_the_field_that_is_wrong(
    bank: BalanceClient, method: str, request_: Any, field: str
) -> None:
    error = await refusal(getattr(bank.stub, method)(request_))
    assert (error.reason, error.code) == (R.ERROR_REASON_INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT)
    assert field in [name for name, _ in error.violations]


async def test_a_token_of_another_filter_is_refused(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=2)
    await bank.place(*[hold_item(user, 1) for user in users])
    page = await bank.stub.ListHolds(pb.ListHoldsRequest(beneficiary=SALE, page_size=1))
    assert page.next_page_token
    other = pb.ListHoldsRequest(beneficiary="other", page_size=1, page_token=page.next_page_token)
    assert (await refusal(bank.stub.ListHolds(other))).violations[0][0] == "page_token"


async def test_names_with_quotes_and_signs_are_only_names(bank: BalanceClient) -> None:
    for name in ['"', "\\", "{a,b}", "NULL", "'; DROP TABLE holds; --", "%s", "é\u2603\U0001f600", "user:x"]:
        user = name + uuid.uuid4().hex
        await bank.stub.CreateAccount(pb.CreateAccountRequest(user_id=user, currency_code="EUR"))
        assert (await bank.deposit(user, 9)).user_id == user
        item = hold_item(user, 9, beneficiary=name)
        assert await bank.place(item) == [("", "HELD")]
        assert await bank.capture(item.hold_id) == [("", "CAPTURED")]
    assert_right(await bank.check())


async def test_the_largest_batches_fit_into_a_call(bank: BalanceClient) -> None:
    """Largest items in the largest number, within the server's limit of a message."""
    tail = "\U0001f600" * 100
    users = [fresh("big") + tail[: 100 - 8] for _ in range(1_000)]
    keys = [pb.AccountKey(user_id=user, currency_code="EUR") for user in users]
    await bank.stub.BatchCreateAccounts(pb.BatchCreateAccountsRequest(accounts=keys))
    deposits = [pb.DepositItem(request_id=fresh("big"), user_id=user, amount=eur(10)) for user in users]
    await bank.stub.BatchDeposit(pb.BatchDepositRequest(deposits=deposits))
    items = [hold_item(user, 10) for user in users]
    assert await bank.place(*items) == [("", "HELD")] * 1_000
    assert await bank.capture(*[item.hold_id for item in items]) == [("", "CAPTURED")] * 1_000
