"""Between the contract's messages and the domain: what a client sent is checked here, item by item or as a whole."""

from collections.abc import Sequence
from typing import Protocol

from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money

from balance_svc.account import Account, AccountKey
from balance_svc.books_check import BooksCheck
from balance_svc.hold import Decision, Hold, HoldRequest, HoldState
from balance_svc.ledger import EntryKind
from balance_svc.listings import BookedEntry
from balance_svc.transfer import TransferKind, TransferRequest
from mesh.errors import invalid_argument
from mesh.timestamps import timestamp
from mesh.validation import AMOUNT_MINOR_MAX, ID_LENGTH_MAX, Violations, canonical_uuid, is_name

_STATES = {state: pb.HoldState.Value(f"HOLD_STATE_{state}") for state in HoldState}
_STATE_NAMES: dict[int, str] = {pb.HOLD_STATE_UNSPECIFIED: "", **{number: state for state, number in _STATES.items()}}
_KINDS = {kind: pb.EntryKind.Value(f"ENTRY_KIND_{kind}") for kind in EntryKind}
#: "user:" or "sale:" and an id.
_LEDGER_ACCOUNT_LENGTH_MAX = 5 + ID_LENGTH_MAX
#: Violations told at most, so that the answer fits into a call's trailing metadata.
_VIOLATIONS_MAX = 10


class _TransferMessage(Protocol):
    """What DepositItem, DepositRequest and WithdrawRequest have in common."""

    @property
    def request_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def amount(self) -> Money: ...


class _KeyMessage(Protocol):
    """What AccountKey, CreateAccountRequest and GetBalanceRequest have in common."""

    @property
    def user_id(self) -> str: ...
    @property
    def currency_code(self) -> str: ...


def require_count(field: str, count: int, most: int) -> None:
    """Requires a batch of 1 to ``most`` items."""
    if not 1 <= count <= most:
        raise invalid_argument((field, f"must have 1 to {most} items, has {count}"))


def account_keys(field: str, messages: Sequence[_KeyMessage]) -> list[AccountKey]:
    """The keys of a batch. Raises INVALID_ARGUMENT that names the first wrong ones."""
    violations = Violations()
    keys = []
    for index, message in enumerate(messages):
        keys.append(_key(violations, message, f"{field}[{index}]."))
        if len(violations.found) >= _VIOLATIONS_MAX:
            break
    violations.raise_if_any()
    return keys


def account_key(message: _KeyMessage) -> AccountKey:
    """One key. Raises INVALID_ARGUMENT."""
    violations = Violations()
    key = _key(violations, message, "")
    violations.raise_if_any()
    return key


def _key(violations: Violations, message: _KeyMessage, prefix: str) -> AccountKey:
    return (
        violations.name(f"{prefix}user_id", message.user_id),
        violations.currency(f"{prefix}currency_code", message.currency_code),
    )


def transfer_request(kind: TransferKind, message: _TransferMessage) -> TransferRequest:
    """A deposit or withdrawal. Raises INVALID_ARGUMENT that names every wrong field."""
    violations = Violations()
    violations.name("request_id", message.request_id)
    violations.name("user_id", message.user_id)
    _check_money(violations, message.amount)
    violations.raise_if_any()
    amount = message.amount
    return TransferRequest(message.request_id, kind, message.user_id, amount.currency_code, amount.amount_minor)


def _check_money(violations: Violations, amount: Money) -> None:
    violations.integer("amount.amount_minor", amount.amount_minor, 1, AMOUNT_MINOR_MAX)
    violations.currency("amount.currency_code", amount.currency_code)


def transfer_item(kind: TransferKind, message: _TransferMessage) -> TransferRequest | None:
    """A deposit of a batch; None when it is malformed."""
    amount = message.amount
    if not (is_name(message.request_id) and is_name(message.user_id) and _is_money(amount)):
        return None
    return TransferRequest(message.request_id, kind, message.user_id, amount.currency_code, amount.amount_minor)


def _is_money(amount: Money) -> bool:
    code = amount.currency_code
    return (
        1 <= amount.amount_minor <= AMOUNT_MINOR_MAX
        and len(code) == 3
        and code.isascii()
        and code.isalpha()
        and code.isupper()
    )


def hold_item(message: pb.PlaceHoldItem) -> HoldRequest | None:
    """A hold of a batch; None when it is malformed."""
    hold_id, amount = canonical_uuid(message.hold_id), message.amount
    if hold_id is None or not (is_name(message.user_id) and is_name(message.beneficiary) and _is_money(amount)):
        return None
    return HoldRequest(hold_id, message.user_id, amount.currency_code, amount.amount_minor, message.beneficiary)


def hold_id_of(text: str) -> str:
    """A hold's id in canonical form. Raises INVALID_ARGUMENT."""
    violations = Violations()
    hold_id = violations.uuid("hold_id", text)
    violations.raise_if_any()
    return hold_id


def hold_filter(request: pb.ListHoldsRequest) -> tuple[str, str]:
    """The beneficiary and state of a list's filter, "" for any. Raises INVALID_ARGUMENT."""
    violations = Violations()
    if request.beneficiary:
        violations.name("beneficiary", request.beneficiary)
    if request.state not in _STATE_NAMES:
        violations.add("state", "is not a state")
    violations.raise_if_any()
    return request.beneficiary, _STATE_NAMES[request.state]


def optional_beneficiary(text: str) -> str:
    """A beneficiary or "". Raises INVALID_ARGUMENT."""
    if text and not is_name(text):
        raise invalid_argument(("beneficiary", f"must be at most {ID_LENGTH_MAX} printable characters"))
    return text


def optional_ledger_account(text: str) -> str:
    """The name of a ledger account or "". Raises INVALID_ARGUMENT."""
    if text and not (text.isprintable() and len(text) <= _LEDGER_ACCOUNT_LENGTH_MAX):
        raise invalid_argument(("account", 'must be such as "user:<id>", "sale:<id>" or "world"'))
    return text


def account_message(account: Account) -> pb.Account:
    """An account as the contract has it."""
    return pb.Account(
        user_id=account.user_id,
        currency_code=account.currency_code,
        balance_minor=account.balance_minor,
        held_minor=account.held_minor,
    )


def outcome_messages(
    hold_ids: Sequence[str], wellformed: Sequence[bool], decisions: Sequence[Decision]
) -> list[pb.HoldOutcome]:
    """One outcome per item, in order and under the id as it was sent; ``decisions`` are those of the well-formed."""
    decided = iter(decisions)
    outcomes = []
    for hold_id, good in zip(hold_ids, wellformed, strict=True):
        if not good:
            outcomes.append(pb.HoldOutcome(hold_id=hold_id, reason=ErrorReason.ERROR_REASON_INVALID_ARGUMENT))
            continue
        hold, reason = next(decided)
        state = pb.HOLD_STATE_UNSPECIFIED if hold is None else _STATES[hold.state]
        outcomes.append(pb.HoldOutcome(hold_id=hold_id, reason=reason, state=state))  # type: ignore[arg-type]
    assert next(decided, None) is None
    return outcomes


def hold_message(hold: Hold) -> pb.Hold:
    """A hold as the contract has it."""
    request = hold.request
    return pb.Hold(
        hold_id=request.hold_id,
        user_id=request.user_id,
        amount=Money(amount_minor=request.amount_minor, currency_code=request.currency_code),
        beneficiary=request.beneficiary,
        state=_STATES[hold.state],
        refusal_reason=hold.refusal_reason,  # type: ignore[arg-type]
        create_time=timestamp(hold.create_time),
        expire_time=timestamp(hold.expire_time),
        end_time=timestamp(hold.end_time),
    )


def entry_message(entry: BookedEntry) -> pb.LedgerEntry:
    """A ledger entry as the contract has it."""
    return pb.LedgerEntry(
        entry_id=entry.entry_id,
        transfer_id=entry.transfer_id,
        account=entry.account,
        amount=Money(amount_minor=entry.amount_minor, currency_code=entry.currency_code),
        kind=_KINDS[entry.kind],
        create_time=timestamp(entry.create_time),
    )


def books_message(check: BooksCheck) -> pb.CheckBooksResponse:
    """What a check found as the contract has it."""
    return pb.CheckBooksResponse(
        totals=[
            pb.CurrencyTotals(
                currency_code=totals.currency_code,
                entries_sum_minor=totals.entries_sum_minor,
                balances_sum_minor=totals.balances_sum_minor,
                customer_entries_sum_minor=totals.customer_entries_sum_minor,
                held_sum_minor=totals.held_sum_minor,
                open_holds_sum_minor=totals.open_holds_sum_minor,
            )
            for totals in check.totals
        ],
        wrong_accounts=map(account_message, check.wrong_accounts),
        holds_decided=check.pace.holds_decided,
        holds_per_s_max=check.pace.holds_per_s_max,
        first_hold_time=timestamp(check.pace.first_hold_time),
        last_hold_time=timestamp(check.pace.last_hold_time),
        wrong_transfers=check.wrong_transfers,
    )
