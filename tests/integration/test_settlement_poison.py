"""Messages that no worker can settle, and purchases that none could finish: seen, replayed and ended by an operator."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aio_pika
import grpc
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.settlement.v1 import settlement_message_pb2

from mesh.errors import DomainError
from mesh.transport import PLAINTEXT
from purchase_svc import operations, settlement_queue
from purchase_svc.dead_letter import DeadLetter
from purchase_svc.dead_letter_box import open_dead_letters
from purchase_svc.parked import _claimed
from purchase_svc.purchase_book import Terms
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_rules import Answer
from purchase_svc.settlement_services import Answers, SettlementServices
from tests.support.servers import Servers
from tests.support.settlement_rig import PRICE, SettlementRig, settlement_rig
from tests.support.waiting import eventually

BY_OPERATOR = f"FAILED {ErrorReason.ERROR_REASON_FAILED_BY_OPERATOR}"
PARKED = f"PARKED {ErrorReason.ERROR_REASON_UNAVAILABLE}"


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[SettlementRig]:
    async with settlement_rig(servers) as made:
        yield made


@pytest.fixture
async def channel(rig: SettlementRig) -> AsyncIterator[AbstractChannel]:
    """A channel by which a test meddles."""
    async with await aio_pika.connect(rig.settings.amqp_url) as connection:
        yield await connection.channel()


async def bought(rig: SettlementRig, buyers: int) -> list[uuid.UUID]:
    await rig.new_sale(2 * buyers, per_user=1_000)
    users = [f"user{n}" for n in range(buyers)]
    await rig.fund(users)
    return await rig.buy(users)


def message(partition: int, ids: Sequence[bytes], version: int = 1) -> bytes:
    return settlement_message_pb2.SettlementMessage(
        version=version, partition=partition, purchase_ids=ids
    ).SerializeToString()


async def send(channel: AbstractChannel, partition: int, body: bytes, **properties: Any) -> None:
    exchange = await channel.get_exchange(settlement_queue.EXCHANGE, ensure=False)
    await exchange.publish(aio_pika.Message(body, **properties), settlement_queue.partition_key(partition))


async def letters(rig: SettlementRig) -> list[DeadLetter]:
    async with open_dead_letters(rig.settings.amqp_url) as box:
        return [letter async for letter, _ in box.letters(operations.SHOWN_MAX)]


async def until_dead(rig: SettlementRig, count: int) -> list[DeadLetter]:
    async def are_dead() -> bool:
        return await rig.dead_letters() == count

    await eventually(are_dead)
    return await letters(rig)


async def told(work: Any, rig: SettlementRig, **options: Any) -> tuple[bool, list[str]]:
    """What a command returns, and what it says."""
    lines: list[str] = []
    return await work(rig.settings, lines.append, **options), lines


async def replay(rig: SettlementRig, most: int = 100) -> tuple[bool, list[str]]:
    return await told(operations.replay_dead_letters, rig, most=most)


async def test_every_kind_of_poison_is_put_aside_with_its_reason_and_the_partition_goes_on(
    rig: SettlementRig, channel: AbstractChannel
) -> None:
    ids = await bought(rig, 60)
    found = await rig.purchases.get_many(ids)
    partition = found[ids[0]].partition
    stranger = uuid.uuid4()
    poison = {
        b"\xff\xfe garbage": "not a SettlementMessage",
        message(partition, [stranger.bytes], version=7): "version 7 is unknown, expected 1",
        message((partition + 1) % 16, [stranger.bytes]): f"names partition {(partition + 1) % 16} in the queue of",
        message(partition, [bytes(16)] * 501): "501 purchases, expected 1 to 500",
        message(partition, [b"short"]): "a purchase id is not 16 bytes long",
    }
    mixed = message(partition, [stranger.bytes, ids[0].bytes])
    async with rig.worker() as worker:
        for body in poison:
            await send(channel, partition, body, message_id="m1", type="some.Type")
        await send(channel, partition, mixed)
        await rig.publish(ids[1:])
        assert await rig.finished(ids) == {"CONFIRMED": 60}
        dead = {letter.body: letter for letter in await until_dead(rig, 6)}
        assert worker.settlement.tally["UNKNOWN PURCHASE"] == 1

        # Nothing of the partition is stuck behind them.
        more = await rig.buy([found[ids[0]].user_id], request="r2")
        await rig.publish(more)
        assert await rig.finished(more) == {"CONFIRMED": 1}
    for body, reason in poison.items():
        assert dead[body].reason.startswith(reason)
        assert (dead[body].partition, dead[body].message_id, dead[body].kind) == (partition, "m1", "some.Type")
        assert dead[body].first_seen is not None
    rest = dead[settlement_queue.encode(partition, [stranger])]
    assert (rest.reason, rest.partition, rest.purchase_ids) == ("unknown purchase", partition, (stranger,))
    assert await rig.dead_letters() == 6
    await rig.audit()


async def test_an_unknown_purchase_is_replayed_once_it_is_there(rig: SettlementRig) -> None:
    await rig.new_sale(10)
    await rig.fund(["alice", "bob"])
    early, known = rig.wishes(["alice"]), await rig.buy(["bob"])
    partition = early[0].partition
    async with rig.worker():
        await rig.publisher.publish(partition, [early[0].purchase_id, *known])
        assert await rig.finished(known) == {"CONFIRMED": 1}
        await until_dead(rig, 1)
        done, lines = await replay(rig)
        assert not done
        assert lines[0] == f"letter 1 of partition {partition:02} stays: unknown purchase {early[0].purchase_id}"
        assert await rig.dead_letters() == 1

        await rig.reserve(early)
        await rig.purchases.insert(early, {rig.sale_id: Terms(PRICE, "EUR")})
        await rig.purchases.mark_queued([early[0].purchase_id])
        assert await replay(rig) == (
            True,
            ["1 purchase queued again, 0 dead letters could not be replayed in full"],
        )
        assert await rig.finished([early[0].purchase_id]) == {"CONFIRMED": 1}
        assert await rig.dead_letters() == 0
    await rig.audit()


async def test_a_replay_takes_each_letter_once_and_leaves_what_cannot_be_settled(
    rig: SettlementRig, channel: AbstractChannel
) -> None:
    ids = await bought(rig, 2)
    stranger = uuid.uuid4()
    found = await rig.purchases.get_many(ids)
    partition = found[ids[0]].partition
    misplaced = message((partition + 1) % 16, [ids[0].bytes])
    dead = await channel.get_exchange(settlement_queue.DEAD_EXCHANGE, ensure=False)
    await dead.publish(aio_pika.Message(b"garbage"), "")
    # As an earlier version, or somebody else, might leave one: without any headers.
    await dead.publish(aio_pika.Message(message(partition, [ids[1].bytes, stranger.bytes])), "")
    await dead.publish(aio_pika.Message(misplaced, headers={"x-reason": "names another partition"}), "")
    async with rig.worker():
        assert await replay(rig, most=1) == (
            False,
            [
                "letter 1 of partition ? stays: not a SettlementMessage",
                "0 purchases queued again, 1 dead letter could not be replayed in full",
                "2 dead letters not looked at",
            ],
        )
        done, lines = await replay(rig)
        assert not done
        assert lines[-1] == "2 purchases queued again, 2 dead letters could not be replayed in full"
        assert await rig.finished(ids) == {"CONFIRMED": 2}
    assert [(letter.body, letter.reason) for letter in await letters(rig)] == [
        (b"garbage", "no reason given"),
        (settlement_queue.encode(partition, [stranger]), "unknown purchase"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["garbage", "unknown purchase"])
async def test_a_broker_killed_before_the_ack_loses_nothing(
    servers: Servers, rig: SettlementRig, channel: AbstractChannel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await bought(rig, 20)
    stranger = uuid.uuid4()
    poison = b"garbage" if kind == "garbage" else message(3, [stranger.bytes])
    put_aside, kills = SettlementPublisher.put_aside, 0

    async def then_the_broker_dies(publisher: SettlementPublisher, letter: DeadLetter) -> None:
        nonlocal kills
        await put_aside(publisher, letter)
        if kills == 0:
            kills = 1
            await asyncio.to_thread(servers.kill, "rabbitmq")

    monkeypatch.setattr(SettlementPublisher, "put_aside", then_the_broker_dies)
    async with rig.worker():
        await send(channel, 3, poison, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await rig.publish(ids)
        assert await rig.finished(ids, within_s=60) == {"CONFIRMED": 20}

        async def empty() -> bool:
            try:
                return await rig.publisher.depths() == (0, 2)
            except DomainError:
                return False

        # Delivered again after the kill, so it is there twice.
        await eventually(empty, within_s=60)
    assert {letter.body for letter in await letters(rig)} == {poison}
    await rig.audit()


async def test_a_letter_that_cannot_be_put_aside_stays_with_the_broker(
    rig: SettlementRig, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_aside, refusals = SettlementPublisher.put_aside, 0

    async def refuse_twice(publisher: SettlementPublisher, letter: DeadLetter) -> None:
        nonlocal refusals
        if refusals < 2:
            refusals += 1
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        await put_aside(publisher, letter)

    monkeypatch.setattr(SettlementPublisher, "put_aside", refuse_twice)
    ids = await bought(rig, 20)
    async with rig.worker():
        await send(channel, 3, b"garbage")
        await rig.publish(ids)
        assert await rig.finished(ids) == {"CONFIRMED": 20}
        assert [letter.body for letter in await until_dead(rig, 1)] == [b"garbage"]


async def fill_dead_letters(channel: AbstractChannel) -> None:
    """Puts 1 MiB after 1 MiB there until the broker refuses."""
    dead = await channel.get_exchange(settlement_queue.DEAD_EXCHANGE, ensure=False)
    for _ in range(40):
        await dead.publish(aio_pika.Message(bytes(1024 * 1024)), "")


async def test_full_dead_letters_block_nobody_and_lose_nothing(rig: SettlementRig, channel: AbstractChannel) -> None:
    ids = await bought(rig, 20)
    with pytest.raises(aio_pika.exceptions.DeliveryError):
        await fill_dead_letters(channel)
    before = await rig.dead_letters()
    assert 16 <= before < 40
    done, lines = await told(operations.show_dead_letters, rig)
    assert done
    assert lines[0] == f"{before} dead letters, FULL: further ones wait in the 30 s retry queue"
    async with rig.worker():
        for _ in range(40):
            await send(channel, 3, b"garbage")
        await rig.publish(ids)
        assert await rig.finished(ids) == {"CONFIRMED": 20}

        async def waits() -> bool:
            return await rig.publisher.depths() == (40, before)

        await eventually(waits)
    # They carry their reason already, and the partition they come back to.
    queue = await channel.get_queue(settlement_queue.retry_name(30), ensure=False)
    waiting = await queue.get()
    assert (waiting.body, waiting.routing_key) == (b"garbage", "03")
    assert waiting.headers["x-reason"] == "not a SettlementMessage"
    await queue.purge()
    await (await channel.get_queue(settlement_queue.DEAD, ensure=False)).purge()


async def test_what_the_broker_itself_gave_up_says_so_and_can_be_replayed(
    rig: SettlementRig, channel: AbstractChannel
) -> None:
    ids = await bought(rig, 1)
    partition = (await rig.purchases.get_many(ids))[ids[0]].partition
    await rig.publish(ids)
    queue = await channel.get_queue(settlement_queue.queue_name(partition), ensure=False)

    async def give_back(taken: AbstractIncomingMessage) -> None:
        await taken.reject(requeue=True)

    tag = await queue.consume(give_back)
    (letter,) = await until_dead(rig, 1)
    await queue.cancel(tag)
    assert (letter.reason, letter.partition) == ("delivery limit in the broker", partition)
    assert letter.purchase_ids == tuple(ids)
    assert letter.first_seen is not None
    assert (await replay(rig))[0]
    async with rig.worker():
        assert await rig.finished(ids) == {"CONFIRMED": 1}


async def parked(rig: SettlementRig, buyers: int, away: str) -> list[uuid.UUID]:
    """Purchases that were tried once, with a service away, and parked."""
    ids = await bought(rig, buyers)
    service = rig.balance_service if away == "balance" else rig.inventory_service
    await service.stop()
    async with rig.services() as services:
        await rig.settlement(services, attempts_max=1).settle(ids)
    await service.start()
    await eventually(lambda: both_answer(rig))
    assert await rig.states(ids) == {PARKED: buyers}
    return ids


async def both_answer(rig: SettlementRig) -> bool:
    """Whether the channels of the rig have found both services again."""
    try:
        await rig.holds()
        await rig.reservations()
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_parked_purchases_are_replayed_and_confirmed(rig: SettlementRig) -> None:
    ids = await parked(rig, 20, "inventory")
    done, lines = await told(operations.show_parked, rig)
    assert done
    assert lines[0] == "20 parked purchases"
    assert {line.split()[0] for line in lines[2:]} == set(map(str, ids))
    async with rig.worker():
        some = [*ids[:5], uuid.uuid4()]
        done, lines = await told(operations.replay_parked, rig, ids=some)
        assert not done
        assert lines == [f"{some[-1]}: there is no such purchase", "5 purchases on the way again"]
        assert await rig.finished(ids[:5]) == {"CONFIRMED": 5}
        assert await told(operations.replay_parked, rig, ids=[]) == (True, ["15 purchases on the way again"])
        assert await rig.finished(ids) == {"CONFIRMED": 20}
        done, lines = await told(operations.replay_parked, rig, ids=ids[:1])
        assert (done, lines[0]) == (False, f"{ids[0]}: it is CONFIRMED, not PARKED")
    await rig.audit()


async def test_a_replay_that_breaks_off_before_it_queues_is_finished_by_the_sweeper(rig: SettlementRig) -> None:
    ids = await parked(rig, 5, "balance")
    async with (
        SettlementPublisher("amqp://127.0.0.1:1", name="nowhere") as nowhere,
        operations._open_parked(rig.settings, PLAINTEXT) as (parked_purchases, _),
    ):
        verdicts, queued = await parked_purchases.replay(ids, nowhere)
    assert (verdicts, queued) == (dict.fromkeys(ids, ""), False)
    async with rig.worker():
        assert await rig.finished(ids) == {"CONFIRMED": 5}


async def test_a_replayed_purchase_can_no_longer_be_cancelled(rig: SettlementRig) -> None:
    ids = await parked(rig, 1, "inventory")
    await told(operations.replay_parked, rig, ids=ids)
    with pytest.raises(DomainError) as refused:
        await rig.purchases.cancel(ids[0], "")
    assert refused.value.reason == ErrorReason.ERROR_REASON_PURCHASE_NOT_CANCELLABLE


async def test_a_parked_purchase_with_a_hold_fails_and_leaves_nothing_behind(rig: SettlementRig) -> None:
    ids = await parked(rig, 3, "inventory")
    assert {hold.state for hold in (await rig.holds()).values()} == {balance_pb.HOLD_STATE_HELD}
    assert await told(operations.fail_parked, rig, ids=ids[:2]) == (
        True,
        ["2 purchases failed, with nothing held or reserved"],
    )
    assert await rig.states(ids) == {BY_OPERATOR: 2, PARKED: 1}
    holds = await rig.holds()
    assert [holds[each].state for each in ids[:2]] == [balance_pb.HOLD_STATE_RELEASED] * 2

    async def on_sale_again() -> bool:
        return await rig.stock() == (5, 1, 0)

    await eventually(on_sale_again)
    account = await rig.balance.GetBalance(balance_pb.GetBalanceRequest(user_id="user0", currency_code="EUR"))
    assert (account.account.balance_minor, account.account.held_minor) == (10 * PRICE, 0)
    done, lines = await told(operations.fail_parked, rig, ids=ids[:1])
    assert (done, lines[0]) == (False, f"{ids[0]}: it is FAILED, not PARKED")
    # A message that comes late finds them ended.
    async with rig.worker():
        await rig.publish(ids)
        await told(operations.replay_parked, rig, ids=[])
        assert await rig.finished(ids) == {BY_OPERATOR: 2, "CONFIRMED": 1}
    await rig.audit()


async def test_a_hold_that_was_never_placed_can_never_be_placed_afterwards(rig: SettlementRig) -> None:
    ids = await parked(rig, 2, "balance")
    assert await rig.holds() == {}
    assert (await told(operations.fail_parked, rig, ids=ids))[0]
    assert {hold.state for hold in (await rig.holds()).values()} == {balance_pb.HOLD_STATE_RELEASED}
    # A worker that was held up with these in hand goes on.
    delayed = [_claimed(each) for each in (await rig.purchases.get_many(ids)).values()]
    async with rig.services() as services:
        late = await services.place_holds(delayed)
    assert {answer.reason for answer in late.values()} == {ErrorReason.ERROR_REASON_HOLD_RELEASED}
    assert await rig.states(ids) == {BY_OPERATOR: 2}
    await rig.audit()


class LostCapture(SettlementServices):
    """Captures, and the answer is lost."""

    async def capture_holds(self, ids: Sequence[uuid.UUID]) -> Answers:
        await super().capture_holds(ids)
        return dict.fromkeys(ids, Answer(ErrorReason.ERROR_REASON_UNAVAILABLE, known=False))


async def test_a_captured_purchase_cannot_fail_and_is_confirmed_by_a_replay(rig: SettlementRig) -> None:
    ids = await bought(rig, 2)
    async with rig.services(LostCapture) as services:
        await rig.settlement(services, attempts_max=1).settle(ids)
    assert await rig.states(ids) == {PARKED: 2}
    done, lines = await told(operations.fail_parked, rig, ids=ids)
    assert not done
    assert set(lines) == {
        *(f"{each}: its money was captured: replay it, which confirms it" for each in ids),
        "0 purchases failed, with nothing held or reserved",
    }
    assert await rig.states(ids) == {PARKED: 2}
    async with rig.worker():
        assert (await told(operations.replay_parked, rig, ids=ids))[0]
        assert await rig.finished(ids) == {"CONFIRMED": 2}
    await rig.audit()


@pytest.mark.parametrize("away", ["balance", "inventory"])
async def test_nothing_fails_while_a_service_is_away(rig: SettlementRig, away: str) -> None:
    ids = await parked(rig, 2, "balance")
    service = rig.balance_service if away == "balance" else rig.inventory_service
    await service.stop()
    done, lines = await told(operations.fail_parked, rig, ids=ids)
    assert not done
    assert all("UNAVAILABLE" in line for line in lines[:2])
    assert await rig.states(ids) == {PARKED: 2}
    await service.start()
    await eventually(lambda: both_answer(rig))
    assert (await told(operations.fail_parked, rig, ids=ids))[0]
    assert await rig.states(ids) == {BY_OPERATOR: 2}
    await rig.audit()


async def command(rig: SettlementRig, *arguments: str, **changes: str) -> tuple[int, list[str], str]:
    """Runs the command line; exit code, lines said, and the complaint."""
    given = {
        "PURCHASE_DATABASE_URL": rig.settings.database_url,
        "SETTLEMENT_AMQP_URL": rig.settings.amqp_url,
        "PURCHASE_INVENTORY_TARGET": rig.settings.inventory_target,
        "PURCHASE_BALANCE_TARGET": rig.settings.balance_target,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "purchase_svc", *arguments),
        env=given | changes,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().splitlines(), complaint.decode()


async def test_the_command_line_shows_aligned_lines_and_leaves_everything_where_it_is(
    rig: SettlementRig, channel: AbstractChannel
) -> None:
    ids = await parked(rig, 1, "balance")
    stranger = uuid.uuid4()
    async with rig.worker():
        await send(channel, 3, b"garbage")
        await send(channel, 12, message(12, [stranger.bytes]))
        dead = await until_dead(rig, 2)
    for _ in range(2):
        code, lines, complaint = await command(rig, "dead-letters")
        assert (code, lines[0], complaint) == (0, "2 dead letters", "")
        shown = {line.split(maxsplit=5)[5]: line for line in lines[2:] if len(line.split()) > 1}
        assert shown["not a SettlementMessage"].split()[3:5] == ["03", "7"]
        assert shown["unknown purchase"].split()[3:5] == ["12", "22"]
        assert f"      {stranger}" in lines
    assert await letters(rig) == dead
    code, lines, complaint = await command(rig, "parked")
    assert (code, lines[0], complaint) == (0, "1 parked purchase", "")
    assert lines[2].split()[:2] == [str(ids[0]), "user0"]
    assert (await command(rig, "replay-dead-letters", "--most", "1"))[0] == 1
    assert (await command(rig, "fail-parked", str(ids[0])))[0] == 0
    assert (await command(rig, "fail-parked", str(ids[0])))[0] == 1
    assert (await command(rig, "replay-parked"))[:2] == (0, ["0 purchases on the way again"])


@pytest.mark.parametrize(
    ("arguments", "changes", "code", "complaint"),
    [
        (["fail-parked"], {}, 2, "the following arguments are required: ID"),
        (["fail-parked", "alice"], {}, 2, "'alice' is no purchase id"),
        (["replay-dead-letters", "--most", "0"], {}, 2, "'0' is not a number"),
        (["parked"], {"SETTLEMENT_BURST": "many"}, 2, "settings: SETTLEMENT_BURST"),
        (["dead-letters"], {"SETTLEMENT_AMQP_URL": "amqp://127.0.0.1:1"}, 1, "UNAVAILABLE: the message broker is away"),
        (["parked"], {"PURCHASE_DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 1, "UNAVAILABLE: the database is away"),
    ],
)
async def test_a_command_that_cannot_be_done_says_why_in_one_line(
    rig: SettlementRig, arguments: list[str], changes: dict[str, str], code: int, complaint: str
) -> None:
    got, lines, said = await command(rig, *arguments, **changes)
    assert (got, lines) == (code, [])
    assert complaint in said
    assert len(said.splitlines()) == 1
