"""The decoder of what travels in the settlement queue, and of dead letters: anybody may have put anything there."""

import uuid
from datetime import UTC, datetime
from typing import Any

from flashsale.settlement.v1 import settlement_message_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from purchase_svc.dead_letter import put_aside, read
from purchase_svc.purchase import PARTITIONS
from purchase_svc.settlement_queue import IDS_MAX, decode, decode_from, encode
from tests.fuzz.effort import effort
from tests.fuzz.requests import broken, messages

NOW = datetime(2026, 11, 26, tzinfo=UTC)
payloads = messages(settlement_message_pb2.SettlementMessage.DESCRIPTOR, {}).map(lambda each: each.SerializeToString())
right = st.builds(
    encode,
    st.integers(0, PARTITIONS - 1),
    st.lists(st.uuids(), min_size=1, max_size=40) | st.just([uuid.uuid4()] * IDS_MAX),
)
octets = st.one_of(st.binary(max_size=200), payloads, right, right.flatmap(broken))

#: What a header of AMQP can be.
header_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.datetimes(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
header_names = st.sampled_from(
    ["x-reason", "x-partition", "x-first-seen", "x-original-message-id", "x-original-type", "x-death", "queue", "time"]
)
deaths = st.lists(
    st.dictionaries(
        st.sampled_from(["queue", "reason", "time", "count"]),
        header_values
        | st.sampled_from(["settlement.03", "rejected", "2026-11-26T00:00:00Z", "9999-12-31T23:59:59-14:00"]),
    ),
    max_size=3,
)
headers = st.dictionaries(header_names, header_values | deaths, max_size=6)


@effort(400)
@given(body=octets)
@example(body=b"")
@example(body=b"\x08\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
def test_a_payload_is_within_bounds_or_refused(body: bytes) -> None:
    try:
        found = decode(body)
    except ValueError:
        return
    assert 0 <= found.partition < PARTITIONS
    assert 1 <= len(found.purchase_ids) <= IDS_MAX
    assert all(isinstance(each, uuid.UUID) for each in found.purchase_ids)
    # What was understood is what would be sent again.
    assert decode(encode(found.partition, found.purchase_ids)) == found


@effort(100)
@given(body=right, partition=st.integers(0, PARTITIONS - 1))
def test_a_payload_is_settled_in_its_own_partition_only(body: bytes, partition: int) -> None:
    named = decode(body).partition
    try:
        assert decode_from(partition, body).partition == partition == named
    except ValueError:
        assert named != partition


@effort(400)
@given(body=octets, given_headers=headers)
def test_a_dead_letter_can_be_shown_whoever_wrote_it(body: bytes, given_headers: dict[str, Any]) -> None:
    letter = read(body, given_headers)
    for text in (letter.reason, letter.message_id, letter.kind):
        assert text == "" or text.isprintable()
        assert len(text) <= 250
    assert letter.partition is None or 0 <= letter.partition < PARTITIONS
    assert letter.first_seen is None or letter.first_seen.tzinfo is not None
    assert bool(letter.flaw) != bool(letter.purchase_ids)
    # Put aside once more, it is the same letter.
    assert read(body, letter.headers).headers == letter.headers


@effort(100)
@given(body=octets, reason=st.text(max_size=400), given_headers=headers, kind=st.none() | st.text(max_size=300))
def test_whatever_cannot_be_settled_can_be_put_aside(
    body: bytes, reason: str, given_headers: dict[str, Any], kind: str | None
) -> None:
    letter = put_aside(body, reason, 3, NOW, headers=given_headers, message_id=kind, kind=kind)
    back = read(letter.body, letter.headers)
    assert (back.body, back.partition) == (body, 3)
    assert back.headers["x-partition"] == 3
