"""Money under concurrency: one winner for every hold, nothing spent twice, right books at every read."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest
import pytest_asyncio
from flashsale.balance.v1 import balance_service_pb2 as pb

from balance_svc.hold import HoldRequest, HoldState
from balance_svc.hold_book import HoldBook
from mesh.postgres import Pool, Queries, open_pool
from tests.support.balance_service import (
    SALE,
    SQL,
    BalanceClient,
    assert_right,
    balance_service,
    fresh,
    hold_item,
    new_id,
    reason_of,
)
from tests.support.servers import Servers
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> str:
    return servers.migrated_database("balance")


@pytest_asyncio.fixture(scope="module")
async def bank(database_url: str) -> AsyncIterator[BalanceClient]:
    # The expirer looks once and then not again: the tests decide when a hold lapses.
    async with balance_service(database_url, expiry_interval_s=60.0) as client:
        yield client


@pytest_asyncio.fixture(scope="module")
async def pool(bank: BalanceClient, database_url: str) -> AsyncIterator[Pool]:
    async with open_pool(database_url, name="test", size=4) as opened:
        yield opened


def book_with(pool: Pool, ttl_s: float) -> HoldBook:
    """The hold book with another time to live. With 0 a hold has lapsed for everybody who comes after its placing."""
    return HoldBook(pool, Queries(SQL), timedelta(seconds=ttl_s))


def request(user_id: str, amount_minor: int) -> HoldRequest:
    return HoldRequest(new_id(), user_id, "EUR", amount_minor, SALE)


async def test_two_buys_beyond_a_balance_hold_once_in_one_batch(bank: BalanceClient) -> None:
    [user] = await bank.fund(100)
    assert await bank.place(hold_item(user, 60), hold_item(user, 60)) == [
        ("", "HELD"),
        ("INSUFFICIENT_FUNDS", "REFUSED"),
    ]


async def test_two_buys_beyond_a_balance_hold_once_in_concurrent_batches(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=50)
    batches = [[hold_item(user, 60) for user in random.sample(users, len(users))] for _ in range(4)]
    answers = await asyncio.gather(*[bank.place(*batch) for batch in batches])
    winners = [
        item.user_id
        for batch, answer in zip(batches, answers, strict=True)
        for item, (reason, _) in zip(batch, answer, strict=True)
        if not reason
    ]
    assert sorted(winners) == sorted(users)
    assert [await bank.money(user) for user in users] == [(100, 60)] * len(users)


async def test_one_new_hold_in_concurrent_batches_is_held_once_and_answered_alike(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=20)
    items = [hold_item(user, 60) for user in users] + [hold_item(fresh("nobody"), 1) for _ in range(20)]
    shuffled = [random.sample(items, len(items)) for _ in range(4)]
    answers = await asyncio.gather(*[bank.place(*batch) for batch in shuffled])
    for batch, answer in zip(shuffled, answers, strict=True):
        for item, told in zip(batch, answer, strict=True):
            stranger = item.user_id.startswith("nobody")
            assert told == (("ACCOUNT_NOT_FOUND", "REFUSED") if stranger else ("", "HELD"))
    assert [await bank.money(user) for user in users] == [(100, 60)] * len(users)


async def test_one_id_for_two_users_at_once_has_one_owner(bank: BalanceClient) -> None:
    """The batches lock different accounts, so only the hold's key makes them meet."""
    users = await bank.fund(100, users=60)
    pairs = [(hold_item(a, 10), b) for a, b in zip(users[:30], users[30:], strict=True)]
    mine = [item for item, _ in pairs]
    theirs = [hold_item(other, 10, item.hold_id) for item, other in pairs]
    first, second = await asyncio.gather(bank.place(*mine), bank.place(*theirs[::-1]))
    for one, two in zip(first, second[::-1], strict=True):
        assert sorted([one, two]) == [("", "HELD"), ("REQUEST_ID_REUSED", "HELD")]
    assert sum([(await bank.money(user))[1] for user in users]) == 30 * 10


async def test_one_deposit_for_two_users_at_once_has_one_owner(bank: BalanceClient) -> None:
    users = await bank.fund(0, users=2)
    for _ in range(20):
        request_id = fresh("contested")
        reasons = await asyncio.gather(*[reason_of(bank.deposit(user, 10, request_id)) for user in users])
        assert sorted(reasons) == ["", "REQUEST_ID_REUSED"]
    assert sum([(await bank.money(user))[0] for user in users]) == 20 * 10


async def test_a_withdrawal_and_a_buy_never_spend_the_same_money(bank: BalanceClient) -> None:
    for user in await bank.fund(100, users=20):
        withdrawn, [(reason, _)] = await asyncio.gather(
            reason_of(bank.withdraw(user, 60)), bank.place(hold_item(user, 60))
        )
        assert sorted([withdrawn, reason]) == ["", "INSUFFICIENT_FUNDS"]
        assert await bank.money(user) == ((100, 60) if withdrawn else (40, 0))


async def test_release_and_capture_at_once_have_one_winner(bank: BalanceClient) -> None:
    users = await bank.fund(100, users=60)
    items = [hold_item(user, 60) for user in users]
    await bank.place(*items)
    ids = [item.hold_id for item in items]
    half = len(ids) // 2
    captured = asyncio.gather(bank.capture(*ids[:half]), bank.capture(*ids[half:]))
    released = asyncio.gather(bank.release(*ids[half:]), bank.release(*ids[:half]))
    (capture_1, capture_2), (release_2, release_1) = await asyncio.gather(captured, released)
    for user, capture, release in zip(users, capture_1 + capture_2, release_1 + release_2, strict=True):
        won = capture == ("", "CAPTURED")
        assert (capture, release) == (
            (("", "CAPTURED"), ("HOLD_CAPTURED", "CAPTURED"))
            if won
            else (("HOLD_RELEASED", "RELEASED"), ("", "RELEASED"))
        )
        assert await bank.money(user) == ((40, 0) if won else (100, 0))


async def test_capture_loses_to_expiry_once_the_time_is_out(bank: BalanceClient, pool: Pool) -> None:
    """Nobody has expired the hold yet: the capture itself finds that its time is out, and gives the money back."""
    [user] = await bank.fund(100)
    hold = request(user, 60)
    [placed] = await book_with(pool, 0).place([hold])
    assert placed.hold is not None
    assert placed.hold.state is HoldState.HELD
    assert await bank.money(user) == (100, 60)
    for _ in range(2):
        assert await bank.capture(hold.hold_id) == [("HOLD_EXPIRED", "EXPIRED")]
        assert await bank.money(user) == (100, 0)
    assert await bank.release(hold.hold_id) == [("", "EXPIRED")]
    assert await bank.place(hold_item(user, 60, hold.hold_id)) == [("HOLD_EXPIRED", "EXPIRED")]


async def test_expiry_loses_to_a_capture_made_in_time(bank: BalanceClient, pool: Pool) -> None:
    book = book_with(pool, 0.3)
    [user] = await bank.fund(100)
    hold = request(user, 60)
    await book.place([hold])
    assert await bank.capture(hold.hold_id) == [("", "CAPTURED")]
    other = request(user, 40)
    await book_with(pool, 0).place([other])
    assert await book.expire_overdue(1_000) >= 1
    assert await bank.money(user) == (40, 0)
    assert await bank.capture(hold.hold_id) == [("", "CAPTURED")]


async def test_capture_and_expiry_at_once_end_in_exactly_one(bank: BalanceClient, pool: Pool) -> None:
    users = await bank.fund(100, users=40)
    expired = captured = 0
    for ttl_s in (0.0, 0.002, 0.005, 0.01, 0.02, 5.0):
        book = book_with(pool, ttl_s)
        holds = [request(user, 10) for user in users]
        await book.place(holds)
        ids = [hold.hold_id for hold in holds]
        first, _, second = await asyncio.gather(
            bank.capture(*ids[:20]), book.expire_overdue(1_000), bank.capture(*ids[20:])
        )
        await book.expire_overdue(1_000)
        for hold_id, told in zip(ids, first + second, strict=True):
            assert told in [("", "CAPTURED"), ("HOLD_EXPIRED", "EXPIRED")]
            assert await bank.capture(hold_id) == [told]
            captured += told[0] == ""
            expired += told[0] != ""
    assert expired
    assert captured
    taken = sum([100 - (await bank.money(user))[0] for user in users])
    assert taken == 10 * captured
    assert_right(await bank.check())


async def test_the_expirer_frees_what_nobody_captured(servers: Servers) -> None:
    settings = {"hold_ttl_s": 0.05, "expiry_interval_s": 0.05, "expiry_batch_max": 7}
    async with balance_service(servers.migrated_database("balance"), **settings) as bank:
        users = await bank.fund(100, users=30)
        items = [hold_item(user, 60) for user in users]
        assert await bank.place(*items) == [("", "HELD")] * 30

        async def all_free() -> bool:
            return [await bank.money(user) for user in users] == [(100, 0)] * 30

        await eventually(all_free)
        assert await bank.capture(*[item.hold_id for item in items]) == [("HOLD_EXPIRED", "EXPIRED")] * 30
        assert_right(await bank.check())


async def test_what_lapsed_while_nobody_served_is_free_before_the_first_call(servers: Servers) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url, hold_ttl_s=0.05, expiry_interval_s=60.0) as bank:
        [user] = await bank.fund(100)
        assert await bank.place(hold_item(user, 60)) == [("", "HELD")]
    with psycopg.connect(url) as conn:
        # Waits on the database's clock, not ours.
        conn.execute("SELECT pg_sleep(0.06)")
    async with balance_service(url, expiry_interval_s=60.0) as bank:
        assert await bank.place(hold_item(user, 100)) == [("", "HELD")]


async def test_callers_who_go_away_midway_leave_right_books(servers: Servers) -> None:
    """Deadlines that run out anywhere in a transaction: the outcome is unknown, and a repetition tells it."""
    async with balance_service(servers.migrated_database("balance"), pool_size=4) as bank:
        users = await bank.fund(1_000, users=10)
        chance = random.Random(1)
        ids = []
        for _ in range(40):
            items = [hold_item(user, 1) for user in users]
            ids += [item.hold_id for item in items]
            request = pb.BatchPlaceHoldsRequest(holds=items)
            capture = pb.BatchCaptureHoldsRequest(hold_ids=[item.hold_id for item in items])
            hasty = [
                reason_of(bank.stub.BatchPlaceHolds(request, timeout=chance.uniform(0.001, 0.02))),
                reason_of(bank.stub.BatchCaptureHolds(capture, timeout=chance.uniform(0.001, 0.02))),
            ]
            assert set(await asyncio.gather(*hasty)) <= {"", "DEADLINE_EXCEEDED"}
            assert await bank.place(*items) in ([("", "HELD")] * 10, [("", "CAPTURED")] * 10)
        assert await bank.capture(*ids) == [("", "CAPTURED")] * len(ids)
        assert [await bank.money(user) for user in users] == [(960, 0)] * 10
        assert_right(await bank.check())


async def storm(bank: BalanceClient, users: list[str], ids: list[str], seed: int) -> None:
    """Random batches over few users and few ids, most of them shared with the other storms."""
    chance = random.Random(seed)
    for _ in range(25):
        some = chance.choices(ids, k=chance.randint(1, 30))
        match chance.randrange(6):
            case 0 | 1:
                # An id always has the same contents, so that it is repeated rather than refused.
                await bank.place(
                    *[hold_item(users[int(i[:4], 16) % len(users)], 1 + int(i[4:6], 16) % 40, i) for i in some]
                )
            case 2:
                await bank.capture(*some)
            case 3:
                await bank.release(*some)
            case 4:
                deposits = [
                    pb.DepositItem(
                        request_id=f"storm-{seed}-{chance.randrange(40)}",
                        user_id=chance.choice(users),
                        amount=hold_item("", chance.randint(1, 9)).amount,
                    )
                    for _ in range(10)
                ]
                await bank.stub.BatchDeposit(pb.BatchDepositRequest(deposits=deposits))
            case _:
                assert await reason_of(bank.reverse(some[0])) not in ("UNAVAILABLE", "INTERNAL")


async def test_a_storm_of_batches_over_few_users_never_deadlocks_and_the_books_are_right_at_every_read(
    servers: Servers,
) -> None:
    url = servers.migrated_database("balance")
    async with balance_service(url, hold_ttl_s=0.2, expiry_interval_s=0.02, expiry_batch_max=10) as bank:
        users = await bank.fund(300, users=8)
        ids = [new_id() for _ in range(120)]
        storms = [asyncio.ensure_future(storm(bank, users, ids, seed)) for seed in range(6)]
        reads = 0
        while not all(task.done() for task in storms):
            assert_right(await bank.check())
            keys = [pb.AccountKey(user_id=user, currency_code="EUR") for user in users]
            answer = await bank.stub.BatchGetBalances(pb.BatchGetBalancesRequest(accounts=keys))
            assert all(0 <= account.held_minor <= account.balance_minor for account in answer.accounts)
            reads += 1
        await asyncio.gather(*storms)
        assert reads > 5
        assert_right(await bank.check())
    name = url.rpartition("/")[2]
    with psycopg.connect(servers.postgres_admin_url, autocommit=True) as conn:
        row = conn.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = %s", [name]).fetchone()
    assert row == (0,)
