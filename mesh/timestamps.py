"""Times as the contracts have them."""

from datetime import UTC, datetime
from typing import overload

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 24 * 60 * 60


@overload
def timestamp(moment: datetime) -> Timestamp: ...
@overload
def timestamp(moment: datetime | None) -> Timestamp | None: ...
def timestamp(moment: datetime | None) -> Timestamp | None:
    """A time, which must have a zone, in protobuf's form; None leaves a field absent.

    Not by Timestamp.FromDatetime, which takes five times as long: a page of purchases has two thousand of them.
    """
    if moment is None:
        return None
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * _DAY_S + since.seconds, nanos=since.microseconds * 1000)
