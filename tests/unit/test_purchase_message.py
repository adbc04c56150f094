"""The settlement message: what is written is read back, and what is no message is refused."""

import uuid

import pytest
from flashsale.settlement.v1 import settlement_message_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from purchase_svc.settlement_queue import (
    IDS_MAX,
    PARTITIONS,
    SettlementMessage,
    decode,
    encode,
    partition_key,
    queue_name,
    retry_name,
)

IDS = st.lists(st.uuids(), min_size=1, max_size=20)


@given(st.integers(0, PARTITIONS - 1), IDS)
def test_what_is_encoded_is_decoded(partition: int, ids: list[uuid.UUID]) -> None:
    assert decode(encode(partition, ids)) == SettlementMessage(partition, tuple(ids))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(body: bytes) -> None:
    try:
        message = decode(body)
    except ValueError:
        return
    assert 0 <= message.partition < PARTITIONS
    assert 1 <= len(message.purchase_ids) <= IDS_MAX


def body(version: int = 1, partition: int = 3, ids: list[bytes] | None = None) -> bytes:
    ids = [uuid.uuid4().bytes] if ids is None else ids
    return pb.SettlementMessage(version=version, partition=partition, purchase_ids=ids).SerializeToString()


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\xff" * 10,
        body(version=0),
        body(version=2),
        body(partition=-1),
        body(partition=PARTITIONS),
        body(ids=[]),
        body(ids=[bytes(16)] * (IDS_MAX + 1)),
        body(ids=[bytes(15)]),
        body(ids=[bytes(16), bytes(17)]),
    ],
)
def test_a_message_out_of_bounds_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(wrong)


def test_the_largest_message_is_read() -> None:
    ids = [uuid.uuid4() for _ in range(IDS_MAX)]
    assert decode(encode(15, ids)).purchase_ids == tuple(ids)


@pytest.mark.parametrize("ids", [[], [uuid.UUID(int=1)] * (IDS_MAX + 1)])
def test_a_message_of_another_size_is_never_written(ids: list[uuid.UUID]) -> None:
    with pytest.raises(AssertionError):
        encode(0, ids)


def test_partitions_are_named_with_two_digits() -> None:
    assert (partition_key(0), partition_key(15), queue_name(7)) == ("00", "15", "settlement.07")


@pytest.mark.parametrize(
    ("delay_s", "name"),
    [
        (0.0, "settlement.retry.1s"),
        (1, "settlement.retry.1s"),
        (1.5, "settlement.retry.5s"),
        (5, "settlement.retry.5s"),
        (6, "settlement.retry.30s"),
        (600, "settlement.retry.30s"),
    ],
)
def test_a_retry_delay_is_rounded_up_to_one_there_is(delay_s: float, name: str) -> None:
    assert retry_name(delay_s) == name
