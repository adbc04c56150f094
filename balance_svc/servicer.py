"""The Balance Service over gRPC: checks what comes in, asks the books, answers. Knows no rule of money itself."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.balance.v1 import balance_service_pb2_grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from balance_svc import conversion
from balance_svc.account import Account, AccountKey
from balance_svc.account_book import AccountBook
from balance_svc.books_check import BooksChecker
from balance_svc.hold import OK, Decision
from balance_svc.hold_book import HoldBook
from balance_svc.listings import Listings
from balance_svc.precedence import Precedence
from balance_svc.transfer import TransferKind, TransferRequest
from balance_svc.transfer_book import TransferBook
from mesh.batcher import Batcher
from mesh.errors import DomainError
from mesh.server import Registration
from mesh.validation import canonical_uuid

#: Most items of a batch about holds, of a batch read, and of a batch that seeds accounts.
HOLDS_MAX, READS_MAX, SEEDS_MAX = 1_000, 1_000, 10_000

_SERVICE = pb.DESCRIPTOR.services_by_name["BalanceService"].full_name


class BalanceServicer(balance_service_pb2_grpc.BalanceServiceServicer):
    """Implements the contract; each RPC's effect and errors are described there."""

    def __init__(
        self,
        accounts: AccountBook,
        transfers: TransferBook,
        holds: HoldBook,
        listings: Listings,
        checker: BooksChecker,
    ) -> None:
        self._accounts = accounts
        self._transfers = transfers
        self._holds = holds
        self._listings = listings
        self._checker = checker
        self._precedence = Precedence()
        # Single reads of many users at once share a statement.
        self._reads: Batcher[AccountKey, Account | None] = Batcher(
            self._read, batch_max=READS_MAX, in_flight_max=1, queue_max=4_096
        )

    def registration(self) -> Registration:
        """What ``mesh.server.GrpcServer`` registers."""
        return (_SERVICE, lambda server: balance_service_pb2_grpc.add_BalanceServiceServicer_to_server(self, server))

    async def BatchCreateAccounts(
        self, request: pb.BatchCreateAccountsRequest, context: Any
    ) -> pb.BatchCreateAccountsResponse:
        """Opens accounts."""
        conversion.require_count("accounts", len(request.accounts), SEEDS_MAX)
        keys = conversion.account_keys("accounts", request.accounts)
        return pb.BatchCreateAccountsResponse(created=await self._accounts.create(keys))

    async def BatchDeposit(self, request: pb.BatchDepositRequest, context: Any) -> pb.BatchDepositResponse:
        """Puts money on accounts, item by item."""
        conversion.require_count("deposits", len(request.deposits), SEEDS_MAX)
        items = [conversion.transfer_item(TransferKind.DEPOSIT, item) for item in request.deposits]
        good = [item for item in items if item is not None]
        answers = iter(await self._transfers.transfer(good) if good else [])
        reasons = [ErrorReason.ERROR_REASON_INVALID_ARGUMENT if item is None else next(answers)[0] for item in items]
        return pb.BatchDepositResponse(
            outcomes=[
                pb.DepositOutcome(request_id=item.request_id, reason=reason)  # type: ignore[arg-type]
                for item, reason in zip(request.deposits, reasons, strict=True)
            ]
        )

    async def CreateAccount(self, request: pb.CreateAccountRequest, context: Any) -> pb.CreateAccountResponse:
        """Opens one account."""
        key = conversion.account_key(request)
        await self._accounts.create([key])
        return pb.CreateAccountResponse(account=await self._account(key))

    async def Deposit(self, request: pb.DepositRequest, context: Any) -> pb.DepositResponse:
        """Puts money on one account."""
        item = conversion.transfer_request(TransferKind.DEPOSIT, request)
        return pb.DepositResponse(account=await self._transfer(item))

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        """Takes money off one account."""
        item = conversion.transfer_request(TransferKind.WITHDRAWAL, request)
        return pb.WithdrawResponse(account=await self._transfer(item))

    async def _transfer(self, item: TransferRequest) -> pb.Account:
        [(reason, account)] = await self._transfers.transfer([item])
        if reason == ErrorReason.ERROR_REASON_INSUFFICIENT_FUNDS and account is not None:
            raise DomainError(reason, metadata={"available_minor": str(account.available_minor)})
        if reason != OK or account is None:
            raise DomainError(reason)
        return conversion.account_message(account)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        """Reads one account."""
        return pb.GetBalanceResponse(account=await self._account(conversion.account_key(request)))

    async def _read(self, keys: Sequence[AccountKey]) -> list[Account | None]:
        await self._precedence.after()
        return await self._accounts.read(keys)

    async def _account(self, key: AccountKey) -> pb.Account:
        account = await self._reads.submit(key)
        if account is None:
            raise DomainError(ErrorReason.ERROR_REASON_ACCOUNT_NOT_FOUND)
        return conversion.account_message(account)

    async def BatchGetBalances(self, request: pb.BatchGetBalancesRequest, context: Any) -> pb.BatchGetBalancesResponse:
        """Reads accounts."""
        conversion.require_count("accounts", len(request.accounts), READS_MAX)
        keys = list(dict.fromkeys(conversion.account_keys("accounts", request.accounts)))
        found = await self._read(keys)
        return pb.BatchGetBalancesResponse(
            accounts=[conversion.account_message(account) for account in found if account is not None]
        )

    async def BatchPlaceHolds(self, request: pb.BatchPlaceHoldsRequest, context: Any) -> pb.BatchPlaceHoldsResponse:
        """Sets money aside, item by item."""
        conversion.require_count("holds", len(request.holds), HOLDS_MAX)
        items = [conversion.hold_item(item) for item in request.holds]
        good = [item for item in items if item is not None]
        with self._precedence.first():
            decisions = await self._holds.place(good) if good else []
        return pb.BatchPlaceHoldsResponse(
            outcomes=conversion.outcome_messages(
                [item.hold_id for item in request.holds], [item is not None for item in items], decisions
            )
        )

    async def BatchCaptureHolds(
        self, request: pb.BatchCaptureHoldsRequest, context: Any
    ) -> pb.BatchCaptureHoldsResponse:
        """Takes held money, item by item."""
        with self._precedence.first():
            return pb.BatchCaptureHoldsResponse(outcomes=await _by_id(self._holds.capture, request.hold_ids))

    async def BatchReleaseHolds(
        self, request: pb.BatchReleaseHoldsRequest, context: Any
    ) -> pb.BatchReleaseHoldsResponse:
        """Gives held money back, item by item."""
        return pb.BatchReleaseHoldsResponse(outcomes=await _by_id(self._holds.release, request.hold_ids))

    async def ReverseCapture(self, request: pb.ReverseCaptureRequest, context: Any) -> pb.ReverseCaptureResponse:
        """Books a capture back."""
        ((hold, reason),) = await self._holds.reverse([conversion.hold_id_of(request.hold_id)])
        if reason != OK or hold is None:
            raise DomainError(
                reason, "the capture cannot be reversed", metadata={"state": hold.state} if hold else None
            )
        return pb.ReverseCaptureResponse(hold=conversion.hold_message(hold))

    async def BatchReverseCaptures(
        self, request: pb.BatchReverseCapturesRequest, context: Any
    ) -> pb.BatchReverseCapturesResponse:
        """Books captures back, item by item."""
        return pb.BatchReverseCapturesResponse(outcomes=await _by_id(self._reverse, request.hold_ids))

    async def _reverse(self, hold_ids: Sequence[str]) -> list[Decision]:
        """As the books decide, but what was never captured is told by one reason: its state tells the rest."""
        return [
            Decision(hold, ErrorReason.ERROR_REASON_HOLD_NOT_CAPTURED if hold and reason else reason)
            for hold, reason in await self._holds.reverse(hold_ids)
        ]

    async def BatchGetHolds(self, request: pb.BatchGetHoldsRequest, context: Any) -> pb.BatchGetHoldsResponse:
        """Reads holds."""
        conversion.require_count("hold_ids", len(request.hold_ids), READS_MAX)
        canonical = [canonical_uuid(hold_id) for hold_id in request.hold_ids]
        wanted = list(dict.fromkeys(hold_id for hold_id in canonical if hold_id is not None))
        await self._precedence.after()
        found = await self._holds.read(wanted) if wanted else {}
        return pb.BatchGetHoldsResponse(
            holds=[conversion.hold_message(found[hold_id]) for hold_id in wanted if hold_id in found]
        )

    async def ListHolds(self, request: pb.ListHoldsRequest, context: Any) -> pb.ListHoldsResponse:
        """A page of holds."""
        beneficiary, state = conversion.hold_filter(request)
        listed = await self._listings.holds(beneficiary, state, request.page_size, request.page_token)
        holds, token = listed.page(conversion.hold_message)
        return pb.ListHoldsResponse(holds=holds, next_page_token=token)

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        """A page of accounts."""
        listed = await self._listings.accounts(request.page_size, request.page_token)
        accounts, token = listed.page(conversion.account_message)
        return pb.ListAccountsResponse(accounts=accounts, next_page_token=token)

    async def ListLedgerEntries(
        self, request: pb.ListLedgerEntriesRequest, context: Any
    ) -> pb.ListLedgerEntriesResponse:
        """A page of the ledger."""
        account = conversion.optional_ledger_account(request.account)
        listed = await self._listings.entries(account, request.page_size, request.page_token)
        entries, token = listed.page(conversion.entry_message)
        return pb.ListLedgerEntriesResponse(entries=entries, next_page_token=token)

    async def CheckBooks(self, request: pb.CheckBooksRequest, context: Any) -> pb.CheckBooksResponse:
        """Sums and checks the books."""
        return conversion.books_message(await self._checker.check(conversion.optional_beneficiary(request.beneficiary)))


async def _by_id(
    change: Callable[[Sequence[str]], Awaitable[list[Decision]]], hold_ids: Sequence[str]
) -> list[pb.HoldOutcome]:
    """Applies ``change`` to the ids that are ids and answers for all."""
    conversion.require_count("hold_ids", len(hold_ids), HOLDS_MAX)
    canonical = [canonical_uuid(hold_id) for hold_id in hold_ids]
    good = [hold_id for hold_id in canonical if hold_id is not None]
    decisions = await change(good) if good else []
    return conversion.outcome_messages(hold_ids, [hold_id is not None for hold_id in canonical], decisions)
