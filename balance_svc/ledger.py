"""The ledger's rules: what is booked for what. Every booking is two entries that sum to zero.

The accounts of beneficiaries and of the outside world are sums of entries and nothing else, so that no row is written
by every purchase of a sale.
"""

from enum import StrEnum
from typing import NamedTuple

#: Where deposits come from and withdrawals go to.
WORLD = "world"


class EntryKind(StrEnum):
    """What an entry is for."""

    DEPOSIT = "DEPOSIT"
    WITHDRAWAL = "WITHDRAWAL"
    CAPTURE = "CAPTURE"
    REVERSAL = "REVERSAL"


class Entry(NamedTuple):
    """One side of a booking; a positive amount puts money on the account."""

    transfer_id: str
    account: str
    amount_minor: int
    currency_code: str
    kind: EntryKind


def user_account(user_id: str) -> str:
    """The name of a customer's account in the ledger."""
    return f"user:{user_id}"


def sale_account(beneficiary: str) -> str:
    """The name of a beneficiary's account in the ledger."""
    return f"sale:{beneficiary}"


def _booking(
    transfer_id: str, kind: EntryKind, amount_minor: int, currency_code: str, *, source: str, target: str
) -> tuple[Entry, Entry]:
    return (
        Entry(transfer_id, source, -amount_minor, currency_code, kind),
        Entry(transfer_id, target, amount_minor, currency_code, kind),
    )


def book_deposit(request_id: str, user_id: str, amount_minor: int, currency_code: str) -> tuple[Entry, Entry]:
    """Money comes in from outside."""
    # The prefix keeps a caller's id apart from hold ids, which name captures.
    return _booking(
        f"deposit:{request_id}", EntryKind.DEPOSIT, amount_minor, currency_code,
        source=WORLD, target=user_account(user_id),
    )  # fmt: skip


def book_withdrawal(request_id: str, user_id: str, amount_minor: int, currency_code: str) -> tuple[Entry, Entry]:
    """Money goes out."""
    return _booking(
        f"withdrawal:{request_id}", EntryKind.WITHDRAWAL, amount_minor, currency_code,
        source=user_account(user_id), target=WORLD,
    )  # fmt: skip


def book_capture(
    hold_id: str, user_id: str, beneficiary: str, amount_minor: int, currency_code: str
) -> tuple[Entry, Entry]:
    """Held money goes to the beneficiary."""
    return _booking(
        hold_id, EntryKind.CAPTURE, amount_minor, currency_code,
        source=user_account(user_id), target=sale_account(beneficiary),
    )  # fmt: skip


def book_reversal(
    hold_id: str, user_id: str, beneficiary: str, amount_minor: int, currency_code: str
) -> tuple[Entry, Entry]:
    """A capture goes back to the customer in full."""
    return _booking(
        f"reversal:{hold_id}", EntryKind.REVERSAL, amount_minor, currency_code,
        source=sale_account(beneficiary), target=user_account(user_id),
    )  # fmt: skip
