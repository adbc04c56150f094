"""Messages delivered twice, late and out of order, and messages that nobody can read."""

import asyncio
import time
import uuid
from collections.abc import Iterator

from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.settlement.v1 import settlement_message_pb2

from bench.clients import call
from mesh.identity import partition_of
from mesh.rabbit import connect_rabbit, publish_confirmed
from purchase_svc.purchase import PARTITIONS
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import EXCHANGE, MESSAGE_TYPE, partition_key
from tests.faults.faults import Fault
from tests.faults.run import FaultError, Run

_PER_MESSAGE = 20
_DEAD_S_MAX = 20.0


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


def _poison() -> dict[str, bytes]:
    def message(**fields: object) -> bytes:
        return settlement_message_pb2.SettlementMessage(**fields).SerializeToString()  # type: ignore[arg-type]

    unknown = [uuid.uuid4().bytes for _ in range(3)]
    return {
        "not a message": b"\xff\xfe garbage",
        "empty": b"",
        "a future version": message(version=99, partition=3, purchase_ids=unknown),
        "no such partition": message(version=1, partition=77, purchase_ids=unknown),
        "an id that is none": message(version=1, partition=3, purchase_ids=[b"short"]),
    }


async def _dead_letters(run: Run) -> int:
    request = purchase.SummarizeSaleRequest(sale_id=run.sale_id)
    return int((await call(run.clients.purchase.SummarizeSale, request)).dead_letters)


async def _poisoned(run: Run) -> None:
    """Unreadable messages among the others: they end as dead letters, and their partitions go on."""
    before = await _dead_letters(run)
    poison = _poison()
    async with await connect_rabbit(run.world.environment["AMQP_URL"], name="poison") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        for octets in poison.values():
            for partition in range(0, PARTITIONS, 4):
                await publish_confirmed(exchange, partition_key(partition), octets, kind=MESSAGE_TYPE)
    sent = len(poison) * (PARTITIONS // 4)
    deadline = time.monotonic() + _DEAD_S_MAX
    while (found := await _dead_letters(run) - before) < sent:
        if time.monotonic() > deadline:
            raise FaultError(f"{found} of {sent} unreadable messages are dead letters")
        await asyncio.sleep(0.1)
    run.verdict.require("dead letters", found == sent, f"{found} dead letters of {sent} unreadable messages")
    run.effects["dead letters"] = found
    await run.settlement_resumes("poison", time.monotonic())


def faults() -> Iterator[Fault]:
    """All faults of messages."""
    yield Fault("messages twice, late, shuffled", "messages", _twice_late_and_shuffled, quick=True)
    yield Fault("poisoned messages", "messages", _poisoned)
