"""The settlement queue in RabbitMQ: its topology, its payload, and publishing to it.

Direct exchange ``settlement`` -> 16 quorum queues ``settlement.00`` .. ``settlement.15``, one per partition of users,
each with a single active consumer. A retry goes to the fanout exchange ``settlement.retry.1s`` (5s, 30s) with its
partition's routing key, waits in the queue of the same name until it expires, and is dead-lettered back to
``settlement`` under the routing key it came with. What no worker can settle goes through the fanout exchange
``settlement.dead`` to the queue ``settlement.dead.letters``, with the reason in its headers.

Sources: rabbitmq.com/docs/quorum-queues (at-least-once dead lettering needs overflow reject-publish),
rabbitmq.com/docs/ttl, rabbitmq.com/docs/consumers (single active consumer).
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel, ExchangeType
from aiormq.abc import FieldTable
from flashsale.settlement.v1 import settlement_message_pb2
from google.protobuf.message import DecodeError

from purchase_svc.purchase import PARTITIONS as PARTITIONS

EXCHANGE = "settlement"
DEAD_EXCHANGE = "settlement.dead"
#: The queue of dead letters.
DEAD = "settlement.dead.letters"
#: Delays that a retry can have, seconds.
RETRY_DELAYS_S = (1, 5, 30)
#: Most purchases in one message; what the writer puts into one is less.
IDS_MAX = 500
#: Type of the messages, as the contract names it.
MESSAGE_TYPE = "flashsale.settlement.v1.SettlementMessage"

_VERSION = 1
#: Deliveries of one message before it is dead-lettered: a distant backstop, attempts are counted per purchase.
_DELIVERY_LIMIT = 100
#: Most messages in a queue; beyond it publishing is refused, and the sweeper publishes later.
_LENGTH_MAX = 20_000
#: Most dead letters, and most bytes of them; beyond either the next one is refused.
DEAD_LENGTH_MAX, DEAD_BYTES_MAX = 10_000, 16 * 1024 * 1024

# Dead lettering waits for the target's confirm; by default a message is lost when the broker dies between the two.
_SAFE_QUORUM: FieldTable = {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-max-length": _LENGTH_MAX,
}
_PARTITION_ARGUMENTS: FieldTable = {
    **_SAFE_QUORUM,
    "x-single-active-consumer": True,
    "x-delivery-limit": _DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
}
_DEAD_ARGUMENTS: FieldTable = {
    "x-queue-type": "quorum",
    "x-overflow": "reject-publish",
    "x-max-length": DEAD_LENGTH_MAX,
    "x-max-length-bytes": DEAD_BYTES_MAX,
    # Every look at a dead letter is a delivery. Brokers from 4.0 on drop a message after 20 unless told otherwise.
    "x-delivery-limit": 1_000_000,
}
#: The unbounded queue of dead letters that earlier versions declared. It keeps what it has, and gets nothing more.
_DEAD_BEFORE = "settlement.dead"


@dataclass(frozen=True, slots=True)
class SettlementMessage:
    """Purchases of one partition to settle; 1 to 500 ids."""

    partition: int
    purchase_ids: tuple[uuid.UUID, ...]


def partition_key(partition: int) -> str:
    """The routing key of a partition: "00" to "15"."""
    return f"{partition:02}"


def queue_name(partition: int) -> str:
    """The queue of a partition: "settlement.00" to "settlement.15"."""
    return f"{EXCHANGE}.{partition_key(partition)}"


def retry_name(delay_s: float) -> str:
    """The retry exchange, and queue, of the shortest delay not below ``delay_s`` seconds, or of the longest."""
    whole = next((delay for delay in RETRY_DELAYS_S if delay >= delay_s), RETRY_DELAYS_S[-1])
    return f"{EXCHANGE}.retry.{whole}s"


def encode(partition: int, ids: Sequence[uuid.UUID]) -> bytes:
    """The payload for purchases of one partition; 1 to 500 ids."""
    assert 0 <= partition < PARTITIONS
    assert 1 <= len(ids) <= IDS_MAX
    message = settlement_message_pb2.SettlementMessage(
        version=_VERSION, partition=partition, purchase_ids=[each.bytes for each in ids]
    )
    return message.SerializeToString()


def decode(body: bytes) -> SettlementMessage:
    """Reads a payload. Raises ValueError when it is none: not to be parsed, another version, or out of bounds."""
    message = settlement_message_pb2.SettlementMessage()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("not a SettlementMessage") from error
    if message.version != _VERSION:
        raise ValueError(f"version {message.version} is unknown, expected {_VERSION}")
    if not 0 <= message.partition < PARTITIONS:
        raise ValueError(f"partition {message.partition} is not 0 to {PARTITIONS - 1}")
    if not 1 <= len(message.purchase_ids) <= IDS_MAX:
        raise ValueError(f"{len(message.purchase_ids)} purchases, expected 1 to {IDS_MAX}")
    if any(len(each) != 16 for each in message.purchase_ids):
        raise ValueError("a purchase id is not 16 bytes long")
    return SettlementMessage(message.partition, tuple(uuid.UUID(bytes=each) for each in message.purchase_ids))


def decode_from(queue_partition: int, body: bytes) -> SettlementMessage:
    """As ``decode``. Raises ValueError also when the message names another partition than that of its queue."""
    message = decode(body)
    if message.partition != queue_partition:
        raise ValueError(f"names partition {message.partition} in the queue of {queue_partition}")
    return message


async def declare(channel: AbstractChannel) -> None:
    """Declares exchanges, queues and bindings. Repeatable; raises what aio_pika raises."""
    main = await channel.declare_exchange(EXCHANGE, ExchangeType.DIRECT, durable=True)
    dead = await channel.declare_exchange(DEAD_EXCHANGE, ExchangeType.FANOUT, durable=True)
    dead_queue = await channel.declare_queue(DEAD, durable=True, arguments=_DEAD_ARGUMENTS)
    await dead_queue.bind(dead)
    # The broker is content when there is no such queue or binding.
    await (await channel.get_underlay_channel()).queue_unbind(_DEAD_BEFORE, exchange=DEAD_EXCHANGE)
    for partition in range(PARTITIONS):
        queue = await channel.declare_queue(queue_name(partition), durable=True, arguments=_PARTITION_ARGUMENTS)
        await queue.bind(main, partition_key(partition))
    for delay_s in RETRY_DELAYS_S:
        name = retry_name(delay_s)
        entry = await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
        arguments: FieldTable = {**_SAFE_QUORUM, "x-message-ttl": delay_s * 1000, "x-dead-letter-exchange": EXCHANGE}
        waiting = await channel.declare_queue(name, durable=True, arguments=arguments)
        await waiting.bind(entry)


async def queue_depths(channel: AbstractChannel) -> tuple[int, int]:
    """Messages ready in all partitions, with those that wait for a retry, and messages in the dead-letter queue.

    Messages that a worker has been given and not acked yet are not counted. Raises what aio_pika raises, ChannelClosed
    when a queue is not there; the channel is then of no more use.
    """
    names = [queue_name(partition) for partition in range(PARTITIONS)]
    names += [retry_name(delay_s) for delay_s in RETRY_DELAYS_S]
    queued = 0
    for name in names:
        queued += await _ready(channel, name)
    return queued, await _ready(channel, DEAD)


async def _ready(channel: AbstractChannel, name: str) -> int:
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count or 0
