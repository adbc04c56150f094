"""The ledger against a plain model of it, and what nobody may do to it."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from balance_svc.account_book import AccountBook
from balance_svc.books_check import BooksChecker
from balance_svc.hold import HoldRequest
from balance_svc.hold_book import HoldBook
from balance_svc.transfer import TransferKind, TransferRequest
from balance_svc.transfer_book import TransferBook
from mesh.errors import reason_name
from mesh.postgres import Queries, open_pool
from tests.support.balance_service import SQL, fresh, new_id
from tests.support.servers import Servers


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> str:
    return servers.migrated_database("balance")


@pytest.mark.parametrize("table", ["ledger_entries", "transfers"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET amount_minor = amount_minor + 1", "DELETE FROM {}", "TRUNCATE {}"]
)  # fmt: skip
def test_what_is_booked_is_never_changed(database_url: str, table: str, change: str) -> None:
    with psycopg.connect(database_url) as conn, pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        conn.execute(change.format(table).encode())


@pytest.mark.parametrize("values", ["10, -1", "10, 11", "-1, 0", "-1, -1"])
def test_sql_refuses_an_account_that_breaks_the_rule(database_url: str, values: str) -> None:
    with psycopg.connect(database_url) as conn, pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"INSERT INTO accounts VALUES ('u', 'EUR', {values})".encode())


def test_sql_refuses_to_take_money_twice_for_one_transfer(database_url: str) -> None:
    insert = (
        "INSERT INTO ledger_entries (transfer_id, account, amount_minor, currency_code, kind, create_time)"
        " VALUES ('t', 'user:u', -5, 'EUR', 'CAPTURE', now()), ('t', 'sale:s', 5, 'EUR', 'CAPTURE', now())"
    )
    with psycopg.connect(database_url) as conn:
        conn.execute(insert)
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute(insert)


@dataclass
class ModelAccount:
    """What a customer should have."""

    balance: int = 0
    held: int = 0


@dataclass
class ModelHold:
    """What a hold should be."""

    request: HoldRequest
    state: str
    refusal: str = ""
    lapses: bool = False


@dataclass
class Model:
    """The books as plain as they can be told: one call after the other, no SQL, no batch."""

    accounts: dict[str, ModelAccount] = field(default_factory=dict)
    holds: dict[str, ModelHold] = field(default_factory=dict)
    transfers: dict[str, tuple[TransferRequest, str]] = field(default_factory=dict)

    def lapse(self, hold: ModelHold) -> None:
        if hold.state == "HELD" and hold.lapses:
            hold.state = "EXPIRED"
            self.accounts[hold.request.user_id].held -= hold.request.amount_minor

    def place(self, request: HoldRequest, lapses: bool) -> tuple[str, str]:
        hold = self.holds.get(request.hold_id)
        if hold is None:
            account = self.accounts.get(request.user_id)
            if account is None:
                hold = ModelHold(request, "REFUSED", "ACCOUNT_NOT_FOUND")
            elif account.balance - account.held < request.amount_minor:
                hold = ModelHold(request, "REFUSED", "INSUFFICIENT_FUNDS")
            else:
                account.held += request.amount_minor
                hold = ModelHold(request, "HELD", lapses=lapses)
            self.holds[request.hold_id] = hold
            return hold.refusal, hold.state
        if hold.request != request:
            return "REQUEST_ID_REUSED", hold.state
        self.lapse(hold)
        answers = {"RELEASED": "HOLD_RELEASED", "EXPIRED": "HOLD_EXPIRED", "REVERSED": "HOLD_REVERSED"}
        return hold.refusal or answers.get(hold.state, ""), hold.state

    def change(self, call: str, hold_id: str) -> tuple[str, str]:
        hold = self.holds.get(hold_id)
        if hold is None:
            return "HOLD_NOT_FOUND", ""
        self.lapse(hold)
        goal = {"capture": "CAPTURED", "release": "RELEASED", "reverse": "REVERSED"}[call]
        if hold.state == ("CAPTURED" if call == "reverse" else "HELD"):
            hold.state = goal
            account, amount = self.accounts[hold.request.user_id], hold.request.amount_minor
            account.held -= 0 if call == "reverse" else amount
            account.balance += {"capture": -amount, "release": 0, "reverse": amount}[call]
        if hold.state == goal or (call == "release" and hold.state in ("EXPIRED", "REFUSED")):
            return "", hold.state
        return ("HOLD_NOT_CAPTURED" if hold.state == "HELD" else f"HOLD_{hold.state}"), hold.state

    def transfer(self, request: TransferRequest) -> str:
        if request.request_id in self.transfers:
            known, refusal = self.transfers[request.request_id]
            return refusal if known == request else "REQUEST_ID_REUSED"
        account = self.accounts.get(request.user_id)
        refusal = ""
        if account is None:
            refusal = "ACCOUNT_NOT_FOUND"
        elif request.kind is TransferKind.DEPOSIT:
            account.balance += request.amount_minor
        elif account.balance - account.held < request.amount_minor:
            refusal = "INSUFFICIENT_FUNDS"
        else:
            account.balance -= request.amount_minor
        self.transfers[request.request_id] = (request, refusal)
        return refusal


def name(reason: int) -> str:
    return reason_name(reason) if reason != ErrorReason.ERROR_REASON_UNSPECIFIED else ""


USERS = st.integers(0, 2)
IDS = st.integers(0, 7)
AMOUNTS = st.sampled_from([1, 2, 5, 9])


class Books(RuleBasedStateMachine):
    """Drives the real books and the model alike. Each run has users and ids of its own in one database."""

    url = ""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.runner.__enter__()
        self.context = open_pool(self.url, name="model", size=1)
        pool = self.runner.run(self.context.__aenter__())
        queries = Queries(SQL)
        self.accounts = AccountBook(pool, queries)
        self.transfers = TransferBook(pool, queries)
        self.checker = BooksChecker(pool, queries)
        # A hold of the second book has lapsed for whoever comes after its placing.
        self.books = {lapses: HoldBook(pool, queries, timedelta(hours=0 if lapses else 1)) for lapses in (True, False)}
        self.users = [fresh("model") for _ in range(3)]
        self.ids = [new_id() for _ in range(8)]
        self.run_id = fresh("run")
        self.model = Model()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.context.__aexit__(None, None, None))
            self.runner.__exit__(None, None, None)

    @rule(user=USERS)
    def open_account(self, user: int) -> None:
        created = self.runner.run(self.accounts.create([(self.users[user], "EUR")]))
        assert created == (self.users[user] not in self.model.accounts)
        self.model.accounts.setdefault(self.users[user], ModelAccount())

    @rule(items=st.lists(st.tuples(USERS, IDS, AMOUNTS, st.booleans()), min_size=1, max_size=6))
    def transfer(self, items: list[tuple[int, int, int, bool]]) -> None:
        requests = [
            TransferRequest(
                f"{self.run_id}-{number}",
                TransferKind.WITHDRAWAL if out else TransferKind.DEPOSIT,
                self.users[user],
                "EUR",
                amount,
            )
            for user, number, amount, out in items
        ]
        expected = [self.model.transfer(request) for request in requests]
        answers = self.runner.run(self.transfers.transfer(requests))
        assert [name(reason) for reason, _ in answers] == expected

    @rule(items=st.lists(st.tuples(USERS, IDS, AMOUNTS), min_size=1, max_size=6), lapses=st.booleans())
    def place(self, items: list[tuple[int, int, int]], lapses: bool) -> None:
        requests = [HoldRequest(self.ids[i], self.users[user], "EUR", amount, "sale") for user, i, amount in items]
        # Within a batch all is of one moment, at which even a hold without time to live, placed in it, has lapsed: so
        # an id occurs once when holds lapse.
        if lapses:
            requests = list({request.hold_id: request for request in requests}.values())
        expected = [self.model.place(request, lapses) for request in requests]
        assert self.told(self.runner.run(self.books[lapses].place(requests))) == expected

    @rule(call=st.sampled_from(["capture", "release", "reverse"]), numbers=st.lists(IDS, min_size=1, max_size=6))
    def change(self, call: str, numbers: list[int]) -> None:
        hold_ids = [self.ids[number] for number in numbers]
        expected = [self.model.change(call, hold_id) for hold_id in hold_ids]
        assert self.told(self.runner.run(getattr(self.books[False], call)(hold_ids))) == expected

    @rule()
    def expire(self) -> None:
        for hold in self.model.holds.values():
            self.model.lapse(hold)
        self.runner.run(self.books[False].expire_overdue(1_000))

    @staticmethod
    def told(decisions: list) -> list[tuple[str, str]]:  # type: ignore[type-arg]
        return [(name(reason), hold.state.value if hold else "") for hold, reason in decisions]

    @invariant()
    @precondition(lambda self: hasattr(self, "model"))
    def balances_are_those_of_the_model(self) -> None:
        found = self.runner.run(self.accounts.read([(user, "EUR") for user in self.users]))
        for user, account in zip(self.users, found, strict=True):
            model = self.model.accounts.get(user)
            assert (account is None) == (model is None)
            if account and model:
                assert (account.balance_minor, account.held_minor) == (model.balance, model.held)

    @invariant()
    @precondition(lambda self: hasattr(self, "model"))
    def the_audit_finds_nothing(self) -> None:
        check = self.runner.run(self.checker.check(""))
        assert check.wrong_accounts == []
        assert check.wrong_transfers == []
        assert all(totals.entries_sum_minor == 0 for totals in check.totals)


def test_the_books_do_what_the_model_says(database_url: str) -> None:
    Books.url = database_url
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
