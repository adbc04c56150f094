"""A Balance Service in the test's event loop, and short ways to call it."""

import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money

import balance_svc
from balance_svc.process import running
from balance_svc.settings import Settings
from mesh.channels import open_channel
from mesh.errors import from_rpc_error, reason_name

SQL = Path(balance_svc.__file__).parent / "sql"
SALE = "5b1c9f0e-0000-4000-8000-000000000001"

_numbers = itertools.count(1)


def eur(amount_minor: int) -> Money:
    """Euro cents."""
    return Money(amount_minor=amount_minor, currency_code="EUR")


def new_id() -> str:
    """A fresh hold id."""
    return str(uuid.uuid4())


def fresh(prefix: str) -> str:
    """A user or request id nobody else in this test run uses."""
    return f"{prefix}-{next(_numbers)}"


def hold_item(user_id: str, amount_minor: int, hold_id: str | None = None, **other: Any) -> pb.PlaceHoldItem:
    """A hold for the sale."""
    values: dict[str, Any] = {"beneficiary": SALE, "amount": eur(amount_minor), **other}
    return pb.PlaceHoldItem(hold_id=hold_id or new_id(), user_id=user_id, **values)


def told(outcomes: Iterable[pb.HoldOutcome]) -> list[tuple[str, str]]:
    """(reason, state) of each outcome, by name; "" for unspecified."""
    return [
        (
            reason_name(outcome.reason) if outcome.reason else "",
            pb.HoldState.Name(outcome.state).removeprefix("HOLD_STATE_") if outcome.state else "",
        )
        for outcome in outcomes
    ]


async def reason_of(call: Awaitable[Any]) -> str:
    """The name of the reason for which a call is refused; "" when it is not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason_name
    return ""


class BalanceClient:
    """Calls one Balance Service."""

    def __init__(self, stub: BalanceServiceStub) -> None:
        #: For calls that have no short way.
        self.stub: Any = stub

    async def fund(self, amount_minor: int, users: int = 1) -> list[str]:
        """Opens accounts of fresh users, each with so much money; their ids."""
        names = [fresh("user") for _ in range(users)]
        keys = [pb.AccountKey(user_id=name, currency_code="EUR") for name in names]
        await self.stub.BatchCreateAccounts(pb.BatchCreateAccountsRequest(accounts=keys))
        if amount_minor:
            items = [pb.DepositItem(request_id=fresh("seed"), user_id=name, amount=eur(amount_minor)) for name in names]
            answer = await self.stub.BatchDeposit(pb.BatchDepositRequest(deposits=items))
            assert {outcome.reason for outcome in answer.outcomes} == {ErrorReason.ERROR_REASON_UNSPECIFIED}
        return names

    async def place(self, *items: pb.PlaceHoldItem) -> list[tuple[str, str]]:
        """Places holds."""
        return told((await self.stub.BatchPlaceHolds(pb.BatchPlaceHoldsRequest(holds=items))).outcomes)

    async def capture(self, *hold_ids: str) -> list[tuple[str, str]]:
        """Captures holds."""
        return told((await self.stub.BatchCaptureHolds(pb.BatchCaptureHoldsRequest(hold_ids=hold_ids))).outcomes)

    async def release(self, *hold_ids: str) -> list[tuple[str, str]]:
        """Releases holds."""
        return told((await self.stub.BatchReleaseHolds(pb.BatchReleaseHoldsRequest(hold_ids=hold_ids))).outcomes)

    async def reverse(self, hold_id: str) -> pb.Hold:
        """Reverses a capture."""
        answer: pb.ReverseCaptureResponse = await self.stub.ReverseCapture(pb.ReverseCaptureRequest(hold_id=hold_id))
        return answer.hold

    async def reverse_all(self, *hold_ids: str) -> list[tuple[str, str]]:
        """Reverses captures, item by item."""
        return told((await self.stub.BatchReverseCaptures(pb.BatchReverseCapturesRequest(hold_ids=hold_ids))).outcomes)

    async def get_holds(self, *hold_ids: str) -> list[pb.Hold]:
        """Reads holds."""
        return list((await self.stub.BatchGetHolds(pb.BatchGetHoldsRequest(hold_ids=hold_ids))).holds)

    async def withdraw(self, user_id: str, amount_minor: int, request_id: str | None = None) -> pb.Account:
        """Withdraws."""
        request = pb.WithdrawRequest(
            request_id=request_id or fresh("withdrawal"), user_id=user_id, amount=eur(amount_minor)
        )
        answer: pb.WithdrawResponse = await self.stub.Withdraw(request)
        return answer.account

    async def deposit(self, user_id: str, amount_minor: int, request_id: str | None = None) -> pb.Account:
        """Deposits."""
        request = pb.DepositRequest(
            request_id=request_id or fresh("deposit"), user_id=user_id, amount=eur(amount_minor)
        )
        answer: pb.DepositResponse = await self.stub.Deposit(request)
        return answer.account

    async def money(self, user_id: str) -> tuple[int, int]:
        """(balance, held) of a user, cents."""
        answer = await self.stub.GetBalance(pb.GetBalanceRequest(user_id=user_id, currency_code="EUR"))
        return answer.account.balance_minor, answer.account.held_minor

    async def check(self, beneficiary: str = "") -> pb.CheckBooksResponse:
        """Checks the books."""
        answer: pb.CheckBooksResponse = await self.stub.CheckBooks(pb.CheckBooksRequest(beneficiary=beneficiary))
        return answer


def assert_right(check: pb.CheckBooksResponse, wrong: Sequence[str] = ()) -> None:
    """Requires books without fault (I3)."""
    assert list(check.wrong_transfers) == list(wrong)
    assert [account.user_id for account in check.wrong_accounts] == []
    for totals in check.totals:
        assert totals.entries_sum_minor == 0
        assert totals.balances_sum_minor == totals.customer_entries_sum_minor
        assert totals.held_sum_minor == totals.open_holds_sum_minor


@asynccontextmanager
async def balance_service(database_url: str, **settings: Any) -> AsyncIterator[BalanceClient]:
    """A service on the database, which must be migrated."""
    values = {"database_url": database_url, "listen": "127.0.0.1:0", "grace_s": 1.0, **settings}
    async with running(Settings(**values)) as service:
        channel = open_channel(f"127.0.0.1:{service.port}")
        try:
            yield BalanceClient(BalanceServiceStub(channel))
        finally:
            await channel.close()
