"""Messages delivered twice, late and out of order, and messages that nobody can read."""

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.settlement.v1 import settlement_message_pb2

from bench.clients import call
from mesh.identity import partition_of
from mesh.rabbit import connect_rabbit, publish_confirmed
from purchase_svc.purchase import PARTITIONS
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import EXCHANGE, MESSAGE_TYPE, encode, partition_key
from stack import environment
from stack.services import base_environment
from tests.faults.faults import Fault
from tests.faults.run import FaultError, Run
from tests.faults.world import World

_SOURCES = Path(__file__).resolve().parents[2]
_PER_MESSAGE = 20
_DEAD_S_MAX = 20.0
#: Partitions that get messages that nobody can settle.
_POISONED = range(0, PARTITIONS, 4)


async def _again(run: Run, publisher: SettlementPublisher) -> int:
    """Publishes every purchase so far once more, shuffled and divided otherwise; how many messages."""
    by_partition: dict[int, list[uuid.UUID]] = {}
    for (user_id, _), purchase_id in run.history.accepted.items():
        by_partition.setdefault(partition_of(user_id, PARTITIONS), []).append(uuid.UUID(purchase_id))
    messages = []
    for partition, ids in by_partition.items():
        run.rng.shuffle(ids)
        messages += [(partition, ids[start : start + _PER_MESSAGE]) for start in range(0, len(ids), _PER_MESSAGE)]
    run.rng.shuffle(messages)
    for partition, some in messages:
        await publisher.publish(partition, some)
    return len(messages)


async def _twice_late_and_shuffled(run: Run) -> None:
    async with SettlementPublisher(run.world.environment["AMQP_URL"], name="duplicates") as publisher:
        count = 0
        while not run.traffic.sent_all:
            count += await _again(run, publisher)
            await asyncio.sleep(0.3)
        await run.until(lambda: run.watcher.settled >= len(run.history.accepted) // 2, "settlement")
        # Late: most of what these name is final by now.
        count += await _again(run, publisher)
    run.effects["messages delivered again"] = count


def _poison(partition: int, known: Sequence[uuid.UUID]) -> dict[str, bytes]:
    """Messages that no worker can settle in this partition's queue. Only of the last does a replay make something."""

    def message(**fields: object) -> bytes:
        return settlement_message_pb2.SettlementMessage(**fields).SerializeToString()  # type: ignore[arg-type]

    unknown = [uuid.uuid4() for _ in range(3)]
    octets = [each.bytes for each in unknown]
    return {
        "not a message": b"\xff\xfe garbage",
        "empty": b"",
        "a future version": message(version=99, partition=partition, purchase_ids=octets),
        "no such partition": message(version=1, partition=77, purchase_ids=octets),
        "an id that is none": message(version=1, partition=partition, purchase_ids=[b"short"]),
        # One only: a worker that takes a message in two parts puts aside what it does not know of each.
        "an unknown purchase": encode(partition, unknown[:1]),
        "another partition": encode((partition + 1) % PARTITIONS, known),
    }


async def _dead_letters(run: Run) -> int:
    request = purchase.SummarizeSaleRequest(sale_id=run.sale_id)
    return int((await call(run.clients.purchase.SummarizeSale, request)).dead_letters)


async def _poisoned(run: Run) -> None:
    """Unreadable messages among the others: they end as dead letters, and their partitions go on; the operator's
    command queues again what can be settled after all, and leaves the rest."""
    before = await _dead_letters(run)
    known = [uuid.UUID(each) for each in list(run.history.accepted.values())[:_PER_MESSAGE]]
    sent = 0
    async with await connect_rabbit(run.world.environment["AMQP_URL"], name="poison") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        for partition in _POISONED:
            for octets in _poison(partition, known).values():
                await publish_confirmed(exchange, partition_key(partition), octets, kind=MESSAGE_TYPE)
                sent += 1
    run.effects["dead letters"] = await _until_dead(run, before + sent) - before
    await run.settlement_resumes("poison", time.monotonic())
    told = await run.world.off(_operate, run.world, "replay-dead-letters")
    stay = await _until_dead(run, before + sent - len(_POISONED))
    run.effects["dead letters replayed"] = before + sent - stay
    for reason in ("not a SettlementMessage", "version 99 is unknown", "not 16 bytes long", "unknown purchase"):
        run.verdict.require("dead letters", reason in told, f"a replay did not tell of {reason!r}: {told[-300:]}")
    expected = f"{len(known) * len(_POISONED)} purchases queued again"
    run.verdict.require("dead letters", expected in told, f"not {expected}: {told[-300:]}")


async def _until_dead(run: Run, expected: int) -> int:
    deadline = time.monotonic() + _DEAD_S_MAX
    while (found := await _dead_letters(run)) != expected:
        if time.monotonic() > deadline:
            listed = await run.world.off(_operate, run.world, "dead-letters")
            raise FaultError(f"{found} messages are dead letters and should be {expected}:\n{listed}")
        await asyncio.sleep(0.1)
    return found


def _operate(world: World, command: str) -> str:
    """What an operator's command prints."""
    settings = base_environment() | environment.for_service("settlement", world.environment)
    done = subprocess.run(
        [sys.executable, "-m", "purchase_svc", command],
        env=settings,
        cwd=_SOURCES,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def faults() -> Iterator[Fault]:
    """All faults of messages."""
    yield Fault("messages twice, late, shuffled", "messages", _twice_late_and_shuffled, quick=True)
    yield Fault("poisoned messages", "messages", _poisoned)
