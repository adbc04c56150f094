"""Decides a batch about holds from what was read under locks. No I/O: what is to be written is collected."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from balance_svc import hold as rules
from balance_svc.account import Account, AccountKey
from balance_svc.hold import Decision, Hold, HoldRequest
from balance_svc.ledger import Entry, book_capture, book_reversal


@dataclass(frozen=True)
class HoldChanges:
    """What a batch writes: new holds, (before, after) of changed ones, accounts as they become, entries."""

    inserted: list[Hold]
    updated: list[tuple[Hold, Hold]]
    accounts: list[Account]
    entries: list[Entry]


class HoldBatch:
    """The accounts and holds of one batch. Each decision sees the effect of those before it, so two holds of one user
    in one batch never spend the same money, and an id that occurs twice is answered alike.

    ``accounts`` must be every account, and ``holds`` every hold, that the batch names and that exists, all locked;
    ``now`` the database's time read after the locks were taken.
    """

    def __init__(self, accounts: Iterable[Account], holds: Iterable[Hold], now: datetime) -> None:
        self._now = now
        self._accounts: dict[AccountKey, Account] = {account.key: account for account in accounts}
        self._holds: dict[str, Hold] = {hold.hold_id: hold for hold in holds}
        self._before: dict[str, Hold | None] = {}
        self._touched: set[AccountKey] = set()
        self._entries: list[Entry] = []

    def place(self, request: HoldRequest, ttl: timedelta) -> Decision:
        """Sets money aside until ``ttl`` from now, or refuses, or answers as before."""
        existing = self._holds.get(request.hold_id)
        if existing is not None:
            return self._take(existing, rules.decide_repeated_place(existing, request, self._now))
        account = self._accounts.get(request.account_key)
        available = None if account is None else account.available_minor
        return self._take(None, rules.decide_first_place(request, available, self._now, self._now + ttl))

    def capture(self, hold_id: str) -> Decision:
        """Takes the held money and books it to the beneficiary."""
        return self._decide(hold_id, rules.decide_capture)

    def release(self, hold_id: str) -> Decision:
        """Gives the held money back to its owner's use."""
        return self._decide(hold_id, rules.decide_release)

    def reverse(self, hold_id: str) -> Decision:
        """Books captured money back."""
        return self._decide(hold_id, rules.decide_reverse)

    def expire(self, hold_id: str) -> Decision:
        """Ends the hold if its time has run out."""
        return self._decide(hold_id, rules.decide_expiry)

    def _decide(self, hold_id: str, rule: Callable[[Hold, datetime], Decision]) -> Decision:
        existing = self._holds.get(hold_id)
        if existing is None:
            return Decision(None, ErrorReason.ERROR_REASON_HOLD_NOT_FOUND)
        return self._take(existing, rule(existing, self._now))

    def _take(self, before: Hold | None, decision: Decision) -> Decision:
        """Notes what a decision changes: the hold, its account and the ledger, which therefore always agree."""
        after = decision.hold
        assert after is not None
        if after is before:
            return decision
        self._before.setdefault(after.hold_id, before)
        self._holds[after.hold_id] = after
        held = after.held_minor - (before.held_minor if before else 0)
        paid = after.paid_minor - (before.paid_minor if before else 0)
        if held or paid:
            key = after.request.account_key
            self._accounts[key] = self._accounts[key].changed(balance=-paid, held=held)
            self._touched.add(key)
        if paid:
            request = after.request
            book = book_capture if paid > 0 else book_reversal
            self._entries.extend(
                book(after.hold_id, request.user_id, request.beneficiary, request.amount_minor, request.currency_code)
            )
        return decision

    def changes(self) -> HoldChanges:
        """What is to be written for all decisions so far."""
        inserted = [self._holds[hold_id] for hold_id, before in self._before.items() if before is None]
        updated = [(before, self._holds[hold_id]) for hold_id, before in self._before.items() if before is not None]
        return HoldChanges(inserted, updated, [self._accounts[key] for key in self._touched], self._entries)
