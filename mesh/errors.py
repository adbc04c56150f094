"""The one error type of the domain and its one mapping to gRPC and HTTP.

Sources: google.rpc error model (AIP-193), RFC 9457 for what the gateway makes of it.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "flashsale"
_PREFIX = "ERROR_REASON_"


@dataclass(frozen=True)
class _Mapping:
    code: grpc.StatusCode
    http_status: int
    retry_after_ms: int = 0


_C = grpc.StatusCode
_R = ErrorReason
_PRECONDITION = _Mapping(_C.FAILED_PRECONDITION, 409)
_MAPPINGS: dict[int, _Mapping] = {
    _R.ERROR_REASON_OVERLOADED: _Mapping(_C.RESOURCE_EXHAUSTED, 429, 1000),
    _R.ERROR_REASON_USER_RATE_LIMITED: _Mapping(_C.RESOURCE_EXHAUSTED, 429, 1000),
    _R.ERROR_REASON_SOLD_OUT: _PRECONDITION,
    _R.ERROR_REASON_SALE_NOT_OPEN: _PRECONDITION,
    _R.ERROR_REASON_USER_LIMIT_REACHED: _PRECONDITION,
    _R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED: _Mapping(_C.INVALID_ARGUMENT, 400),
    _R.ERROR_REASON_RESERVATION_RELEASED: _PRECONDITION,
    _R.ERROR_REASON_RESERVATION_SOLD: _PRECONDITION,
    _R.ERROR_REASON_SALE_STATE_CONFLICT: _PRECONDITION,
    _R.ERROR_REASON_SALE_CLOSED: _PRECONDITION,
    _R.ERROR_REASON_NOT_ELIGIBLE: _Mapping(_C.PERMISSION_DENIED, 403),
    _R.ERROR_REASON_WAITLIST_FULL: _PRECONDITION,
    _R.ERROR_REASON_INSUFFICIENT_FUNDS: _PRECONDITION,
    _R.ERROR_REASON_ACCOUNT_NOT_FOUND: _Mapping(_C.NOT_FOUND, 404),
    _R.ERROR_REASON_HOLD_CAPTURED: _PRECONDITION,
    _R.ERROR_REASON_HOLD_RELEASED: _PRECONDITION,
    _R.ERROR_REASON_HOLD_EXPIRED: _PRECONDITION,
    _R.ERROR_REASON_HOLD_NOT_FOUND: _Mapping(_C.NOT_FOUND, 404),
    _R.ERROR_REASON_HOLD_REFUSED: _PRECONDITION,
    _R.ERROR_REASON_HOLD_REVERSED: _PRECONDITION,
    _R.ERROR_REASON_HOLD_NOT_CAPTURED: _PRECONDITION,
    _R.ERROR_REASON_REQUEST_ID_REUSED: _Mapping(_C.ALREADY_EXISTS, 409),
    _R.ERROR_REASON_SALE_NOT_FOUND: _Mapping(_C.NOT_FOUND, 404),
    _R.ERROR_REASON_PURCHASE_NOT_FOUND: _Mapping(_C.NOT_FOUND, 404),
    _R.ERROR_REASON_RESERVATION_NOT_FOUND: _Mapping(_C.NOT_FOUND, 404),
    _R.ERROR_REASON_PURCHASE_NOT_CANCELLABLE: _PRECONDITION,
    _R.ERROR_REASON_PURCHASE_NOT_REFUNDABLE: _PRECONDITION,
    _R.ERROR_REASON_REFUND_WINDOW_OVER: _PRECONDITION,
    _R.ERROR_REASON_PURCHASE_NOT_PARKED: _PRECONDITION,
    _R.ERROR_REASON_RESERVATION_PROMOTED: _PRECONDITION,
    _R.ERROR_REASON_INVALID_ARGUMENT: _Mapping(_C.INVALID_ARGUMENT, 400),
    _R.ERROR_REASON_UNAUTHENTICATED: _Mapping(_C.UNAUTHENTICATED, 401),
    _R.ERROR_REASON_PERMISSION_DENIED: _Mapping(_C.PERMISSION_DENIED, 403),
    _R.ERROR_REASON_UNAVAILABLE: _Mapping(_C.UNAVAILABLE, 503, 500),
    _R.ERROR_REASON_STOCK_RECALIBRATING: _Mapping(_C.UNAVAILABLE, 503, 500),
    _R.ERROR_REASON_DEADLINE_EXCEEDED: _Mapping(_C.DEADLINE_EXCEEDED, 504),
    _R.ERROR_REASON_INTERNAL: _Mapping(_C.INTERNAL, 500),
    _R.ERROR_REASON_ABANDONED: _PRECONDITION,
    _R.ERROR_REASON_FAILED_BY_OPERATOR: _PRECONDITION,
}


def reason_name(reason: int) -> str:
    """The name of a reason without its prefix, as ErrorInfo and problem+json carry it: "SOLD_OUT"."""
    return ErrorReason.Name(reason).removeprefix(_PREFIX)  # type: ignore[arg-type]


def http_status(reason: int) -> int:
    """The HTTP status code of a reason."""
    return _MAPPINGS[reason].http_status


def suggested_retry_ms(reason: int) -> int:
    """How long a caller should wait before a repetition, milliseconds; 0 when a repetition is no use."""
    return _MAPPINGS[reason].retry_after_ms if reason in _MAPPINGS else 0


def jittered_ms(delay_ms: int) -> int:
    """Half of a delay to the whole of it, at random: a crowd that is told the same comes back as the same crowd."""
    return round(delay_ms * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)


class DomainError(Exception):
    """A call was refused for a reason that the caller may know.

    ``reason`` is an ErrorReason. ``violations`` are (field, description) pairs of an INVALID_ARGUMENT.
    ``retry_after_ms`` overrides the reason's own delay, which is jittered. The message is sent to the client: no
    secrets in it.
    """

    def __init__(
        self,
        reason: int,
        message: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        self.reason = reason
        self.reason_name = reason_name(reason)
        self.message = message or self.reason_name.lower().replace("_", " ")
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        if retry_after_ms is None:
            retry_after_ms = jittered_ms(suggested_retry_ms(reason))
        self.retry_after_ms = retry_after_ms
        super().__init__(self.message)

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code of the reason."""
        return _MAPPINGS[self.reason].code

    @property
    def http_status(self) -> int:
        """The HTTP status code of the reason."""
        return http_status(self.reason)

    @property
    def retry_after_s(self) -> int:
        """The delay as the Retry-After header wants it: whole seconds, rounded up, at least 1."""
        return max(1, math.ceil(self.retry_after_ms / 1000))


def invalid_argument(*violations: tuple[str, str]) -> DomainError:
    """An INVALID_ARGUMENT that names each wrong field with what is wrong about it."""
    message = "; ".join(f"{name}: {text}" for name, text in violations)
    return DomainError(ErrorReason.ERROR_REASON_INVALID_ARGUMENT, message, violations=violations)


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def to_status(error: DomainError) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo always, BadRequest and RetryInfo where they serve."""
    info = error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=error.metadata)
    details = [_packed(info)]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for name, text in error.violations:
            bad_request.field_violations.add(field=name, description=text)
        details.append(_packed(bad_request))
    if error.retry_after_ms:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=details)


_REASON_OF_CODE = {
    _C.DEADLINE_EXCEEDED: _R.ERROR_REASON_DEADLINE_EXCEEDED,
    _C.UNAVAILABLE: _R.ERROR_REASON_UNAVAILABLE,
    _C.RESOURCE_EXHAUSTED: _R.ERROR_REASON_OVERLOADED,
    _C.CANCELLED: _R.ERROR_REASON_UNAVAILABLE,
    _C.UNAUTHENTICATED: _R.ERROR_REASON_UNAVAILABLE,
    _C.PERMISSION_DENIED: _R.ERROR_REASON_UNAVAILABLE,
}
#: What a service says of its peer's certificate, which is never the fault of whoever asked that peer.
_OF_PEERS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})


def from_rpc_error(error: grpc.aio.AioRpcError) -> DomainError:
    """What a failed call to another service of the mesh means here.

    An error without our ErrorInfo (a broken connection, a deadline, a bug on the other side) becomes UNAVAILABLE,
    DEADLINE_EXCEEDED, OVERLOADED or INTERNAL; its text is not passed on. A refusal of this process itself (its
    certificate has expired, or may not do this) is UNAVAILABLE: a buyer must not be told that their own token is bad.
    """
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found = False
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        for detail in status.details if status is not None else ():
            if detail.Unpack(info):
                found = info.domain == DOMAIN and _PREFIX + info.reason in ErrorReason.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
            else:
                _ = detail.Unpack(bad_request) or detail.Unpack(retry)
    except (DecodeError, ValueError):
        # Details that cannot be read, or that contradict the call's own code: as if there were none.
        found = False
    if not found or info.reason in _OF_PEERS:
        reason = _REASON_OF_CODE.get(error.code(), _R.ERROR_REASON_INTERNAL)
        return DomainError(reason)
    return DomainError(
        ErrorReason.Value(_PREFIX + info.reason),
        error.details() or "",
        metadata=info.metadata,
        violations=[(v.field, v.description) for v in bad_request.field_violations],
        retry_after_ms=retry.retry_delay.ToMilliseconds() or None,
    )
