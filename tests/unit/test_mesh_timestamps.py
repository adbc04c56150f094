"""Times in protobuf's form."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from mesh.timestamps import timestamp


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(2026, 2, 28, 12, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 6, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_a_time_is_the_same_in_protobufs_form(moment: datetime) -> None:
    message = timestamp(moment)
    assert message.ToDatetime(tzinfo=UTC) == moment
    by_protobuf = Timestamp()
    by_protobuf.FromDatetime(moment)
    assert message == by_protobuf


def test_no_time_is_no_message() -> None:
    assert timestamp(None) is None


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        timestamp(datetime(2026, 1, 1))
