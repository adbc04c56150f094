"""Answers of the gateway, and RFC 9457 problem details for everything it refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError

Headers = list[tuple[str, str]]

#: Header of a body that is JSON.
JSON = ("content-type", "application/json")
_PROBLEM = ("content-type", "application/problem+json")
_NO_STORE = ("cache-control", "no-store")

#: Suggested delay where the outcome is unknown; the same Idempotency-Key may be sent again, milliseconds.
_UNKNOWN_RETRY_MS = 1000

#: What 401 asks for. Only a token that was there can be wrong (RFC 6750, section 3.1).
_CHALLENGE = 'Bearer realm="flashsale"'
_CHALLENGE_BAD_TOKEN = _CHALLENGE + ', error="invalid_token"'
CHALLENGES = (_CHALLENGE, _CHALLENGE_BAD_TOKEN)

_KNOWN = frozenset(ErrorReason.values())


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole HTTP answer. ``reason`` is for the metrics: "OK", "WAITLISTED", or the name of the reason."""

    status: int
    headers: Headers
    body: bytes
    reason: str = "OK"


class NoTokenError(DomainError):
    """UNAUTHENTICATED because the request says nothing of who sent it, rather than anything that is wrong."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorReason.ERROR_REASON_UNAUTHENTICATED, detail)


class HttpError(Exception):
    """The request is wrong as HTTP, before anything of the domain is looked at (404, 405, 413, ...). Its reason is
    INVALID_ARGUMENT with another status."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self.status = status
        self.detail = detail
        self.headers = tuple(headers)
        super().__init__(detail)


class ToldError(Exception):
    """``error``, of whatever kind, with headers that its answer is to have."""

    def __init__(self, error: Exception, headers: Headers) -> None:
        self.error = error
        self.headers = headers
        super().__init__(str(error))


def json_answer(
    status: int, value: Mapping[str, Any], headers: Sequence[tuple[str, str]] = (), *, reason: str = "OK"
) -> Answer:
    """An answer with a JSON body that no cache may keep."""
    return Answer(status, [JSON, _NO_STORE, *headers], msgspec.json.encode(value), reason)


def encoded_answer(octets: bytes) -> Answer:
    """An answer 200 with a body that is JSON already."""
    return Answer(200, [JSON, _NO_STORE], octets)


def _problem(
    status: int,
    reason: str,
    detail: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    **members: Any,
) -> Answer:
    title = HTTPStatus(status).phrase if reason == "INVALID_ARGUMENT" else reason.replace("_", " ").capitalize()
    body = {
        "type": f"urn:flashsale:reason:{reason}",
        "title": title,
        "status": status,
        "detail": detail,
        "reason": reason,
        **{name: value for name, value in members.items() if value},
    }
    return Answer(status, [_PROBLEM, _NO_STORE, *headers], msgspec.json.encode(body), reason)


def http_problem(error: HttpError) -> Answer:
    """The answer to a request that is wrong as HTTP."""
    return _problem(error.status, "INVALID_ARGUMENT", error.detail, headers=error.headers)


def domain_problem(error: DomainError) -> Answer:
    """The answer to a refusal: the reason's status, Retry-After when a repetition may help, the violations."""
    headers: Headers = []
    retry_after_ms = error.retry_after_ms
    if error.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED and not retry_after_ms:
        retry_after_ms = _UNKNOWN_RETRY_MS
    if retry_after_ms:
        headers.append(("retry-after", str(max(1, -(-retry_after_ms // 1000)))))
    if error.reason == ErrorReason.ERROR_REASON_UNAUTHENTICATED:
        headers.append(("www-authenticate", _CHALLENGE if isinstance(error, NoTokenError) else _CHALLENGE_BAD_TOKEN))
    return _problem(
        error.http_status,
        error.reason_name,
        error.message,
        headers=headers,
        retry_after_ms=retry_after_ms,
        violations=[{"field": name, "description": text} for name, text in error.violations],
        metadata=error.metadata,
    )


def known_reason(reason: int) -> int:
    """``reason``, or INTERNAL for a value this version does not know (a newer service may send one)."""
    return reason if reason in _KNOWN else ErrorReason.ERROR_REASON_INTERNAL


#: The refusal that most people get; made once.
SOLD_OUT = domain_problem(DomainError(ErrorReason.ERROR_REASON_SOLD_OUT, "no share is available now"))
