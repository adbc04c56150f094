"""Deposits and withdrawals: the decisions about them, without I/O."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from balance_svc.account import BALANCE_MINOR_MAX, Account, AccountKey
from balance_svc.hold import OK
from balance_svc.ledger import Entry, book_deposit, book_withdrawal

_R = ErrorReason


class TransferKind(StrEnum):
    """Which way the money goes."""

    DEPOSIT = "DEPOSIT"
    WITHDRAWAL = "WITHDRAWAL"


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What is asked for; all of it must be alike for two requests with one id to be the same request."""

    request_id: str
    kind: TransferKind
    user_id: str
    currency_code: str
    amount_minor: int

    @property
    def account_key(self) -> AccountKey:
        """Whose account."""
        return (self.user_id, self.currency_code)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A decided request; ``refusal_reason`` is an ErrorReason, OK when the money was moved."""

    request: TransferRequest
    refusal_reason: int


@dataclass
class TransferBatch:
    """The accounts and earlier transfers of one batch, all accounts locked. Each decision sees the effect of those
    before it. ``inserted``, ``entries`` and ``changed()`` are what is to be written."""

    accounts: dict[AccountKey, Account]
    known: dict[str, Transfer]
    inserted: list[Transfer] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    _touched: set[AccountKey] = field(default_factory=set)

    @classmethod
    def of(cls, accounts: Iterable[Account], known: Iterable[Transfer]) -> "TransferBatch":
        """A batch over what was read."""
        return cls(
            {account.key: account for account in accounts},
            {transfer.request.request_id: transfer for transfer in known},
        )

    def decide(self, request: TransferRequest) -> int:
        """The ErrorReason of the answer, OK when the money was moved now or earlier.

        A refusal is remembered like a success: a copy of a refused request that arrives late must not move money its
        sender has been told is where it was.
        """
        known = self.known.get(request.request_id)
        if known is not None:
            return known.refusal_reason if known.request == request else _R.ERROR_REASON_REQUEST_ID_REUSED
        account = self.accounts.get(request.account_key)
        deposit = request.kind is TransferKind.DEPOSIT
        reason: int = OK
        if account is None:
            reason = _R.ERROR_REASON_ACCOUNT_NOT_FOUND
        elif deposit and account.balance_minor + request.amount_minor > BALANCE_MINOR_MAX:
            return _R.ERROR_REASON_INVALID_ARGUMENT
        elif not deposit and account.available_minor < request.amount_minor:
            reason = _R.ERROR_REASON_INSUFFICIENT_FUNDS
        else:
            self._book(request, account)
        transfer = Transfer(request, reason)
        self.known[request.request_id] = transfer
        self.inserted.append(transfer)
        return reason

    def _book(self, request: TransferRequest, account: Account) -> None:
        deposit = request.kind is TransferKind.DEPOSIT
        signed = request.amount_minor if deposit else -request.amount_minor
        self.accounts[account.key] = account.changed(balance=signed)
        self._touched.add(account.key)
        book = book_deposit if deposit else book_withdrawal
        self.entries.extend(book(request.request_id, request.user_id, request.amount_minor, request.currency_code))

    def changed(self) -> list[Account]:
        """The accounts whose balance is another now."""
        return [self.accounts[key] for key in self._touched]
