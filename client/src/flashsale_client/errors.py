"""Errors by reason: ``except SoldOut`` instead of comparing strings.

Sources: google.rpc error model (AIP-193); the reasons are those of flashsale/common/v1/error_reason.proto.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "flashsale"
_PREFIX = "ERROR_REASON_"
_DETAILS = "grpc-status-details-bin"


class FlashsaleError(Exception):
    """A call, or an item of a batch, came to nothing. Which class it is tells why; raised as this class itself only for
    a reason that this version does not know.

    ``reason`` is the ErrorReason's name without its prefix, such as "SOLD_OUT". ``metadata`` is what the contract shows
    beside the reason. ``violations`` are (field, description) pairs of bad input. ``retry_after_s`` is how long the
    service asks to wait before the same request is sent again, seconds; None: it does not ask. ``code`` is the gRPC
    status. ``request_id`` is that of the buy that failed: sent again with it, it is the same purchase.
    """

    reason: str = ""
    _by_reason: ClassVar[dict[str, type["FlashsaleError"]]] = {}

    def __init_subclass__(cls, reason: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if reason:
            cls.reason = reason
            FlashsaleError._by_reason[reason] = cls

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        self.reason = reason or type(self).reason
        self.code = code
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.request_id = ""
        super().__init__(message or self.reason.lower().replace("_", " "))

    def of_request(self, request_id: str) -> Self:
        """The same error as that of one buy, when it was the error of several."""
        error = type(self)(
            str(self),
            reason=self.reason,
            code=self.code,
            metadata=self.metadata,
            violations=self.violations,
            retry_after_s=self.retry_after_s,
        )
        error.request_id = request_id
        return error


class Refused(FlashsaleError):
    """The services have decided. Sending the same request again changes nothing until something else has changed."""


class TryAgain(FlashsaleError):
    """Nothing is decided, or it is not known what was: the same request, with the same request id, may be sent again
    after ``retry_after_s``. This client has done so already as often as its policy lets it."""


def _class_of(reason: str) -> type[FlashsaleError]:
    return FlashsaleError._by_reason.get(reason, FlashsaleError)


def error_of_item(reason: int, retry_after_ms: int = 0) -> FlashsaleError:
    """The error of an item of a batch, which carries an ErrorReason other than UNSPECIFIED."""
    known = reason in ErrorReason.values()
    name = ErrorReason.Name(reason).removeprefix(_PREFIX) if known else f"REASON_{reason}"  # type: ignore[arg-type]
    retry_after_s = retry_after_ms / 1000 if retry_after_ms else None
    return _class_of(name)(reason=name, retry_after_s=retry_after_s)


#: What a failure means that no service has explained: a broken connection, a deadline, somebody in between.
_REASON_OF_CODE = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "UNAVAILABLE",
    grpc.StatusCode.INTERNAL: "INTERNAL",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
}


def error_of_call(error: grpc.RpcError) -> FlashsaleError:
    """The error of a call that failed, from its status and details."""
    # Both kinds of client raise errors that are calls too, which the type stubs do not say.
    call: Any = error
    code: grpc.StatusCode = call.code()
    details = _details(call)
    info, retry = details.info, details.retry
    reason = info.reason if info.domain == _DOMAIN else ""
    reason = reason or _REASON_OF_CODE.get(code, code.name)
    return _class_of(reason)(
        call.details() or "",
        reason=reason,
        code=code,
        metadata=info.metadata,
        violations=[(each.field, each.description) for each in details.bad_request.field_violations],
        retry_after_s=None if retry is None else max(0, retry.retry_delay.ToMilliseconds()) / 1000,
    )


class _Details(NamedTuple):
    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest
    retry: error_details_pb2.RetryInfo | None


def _details(call: Any) -> _Details:
    """What is in the trailers of a failed call; empty where somebody in between has put what is none of ours."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, told = error_details_pb2.RetryInfo(), False
    try:
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS:
                for detail in status_pb2.Status.FromString(value).details:
                    told = detail.Unpack(retry) or told
                    _ = detail.Unpack(info) or detail.Unpack(bad_request)
    except DecodeError:
        return _Details(error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None)
    return _Details(info, bad_request, retry if told else None)
