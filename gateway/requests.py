"""What a request says: its method, the ids in its path, its query, its body. Bounded, and refused where it is wrong."""

import asyncio
import math
import re
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec
from granian.rsgi import HTTPProtocol, ProtocolClosed, ProtocolError, Scope  # type: ignore[attr-defined]

from gateway.admission import (
    BODY_BYTES_MAX,
    body_length,
    check_authorization_length,
    check_content_type,
    too_large,
)
from gateway.problems import HttpError
from mesh.errors import invalid_argument
from mesh.validation import Violations

T = TypeVar("T")

#: How long a body may take to come, s.
_BODY_S_MAX = 5.0
_LATE_BODY = "the body did not come in time"
#: How a number of seconds is written: as in JSON.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
#: Longest ?wait= of a long poll, s.
_WAIT_S_MAX = 30.0


def allow(method: str, *methods: str) -> None:
    """Raises HttpError 405, with what is allowed, for any other method."""
    if method not in methods:
        raise HttpError(405, f"use {' or '.join(methods)}", [("allow", ", ".join(methods))])


def uuid_of(field: str, text: str) -> str:
    """A UUID in canonical form. Raises INVALID_ARGUMENT for anything else."""
    violations = Violations()
    canonical = violations.uuid(field, text)
    violations.raise_if_any()
    return canonical


def parameter(scope: Scope, name: str) -> str | None:
    """The first value of a query parameter. Raises INVALID_ARGUMENT for a query of more than 20."""
    if not scope.query_string:
        return None
    try:
        values = parse_qs(scope.query_string, keep_blank_values=True, max_num_fields=20).get(name)
    except ValueError as error:
        raise invalid_argument(("query", "has too many parameters")) from error
    return values[0] if values else None


def authorization_of(scope: Scope) -> str | None:
    """The Authorization header. Raises HttpError 431 for one that no token of ours can be."""
    authorization: str | None = scope.headers.get("authorization")
    check_authorization_length(authorization)
    return authorization


def page_size(scope: Scope, most: int) -> int:
    """How many a page may hold, ``most`` unless ?page_size= says less. Raises INVALID_ARGUMENT out of 1 to ``most``."""
    text = parameter(scope, "page_size")
    if text is None:
        return most
    size = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= size <= most:
        raise invalid_argument(("page_size", f"must be 1 to {most}"))
    return size


def page_token(scope: Scope) -> str:
    """The page asked for; empty: the first. Whether it is one is the service's to say, but not how long."""
    token = parameter(scope, "page_token") or ""
    if len(token) > 1024:
        raise invalid_argument(("page_token", "is longer than any that was given"))
    return token


def wait_s(text: str | None) -> float:
    """How long a long poll may wait, seconds; 0: not at all."""
    if text is None:
        return 0.0
    try:
        seconds = float(text) if len(text) <= 32 and _NUMBER.fullmatch(text) else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _WAIT_S_MAX:
        raise invalid_argument(("wait", f"must be 0 to {_WAIT_S_MAX:g} seconds"))
    return seconds


async def body_of(
    headers: Any,
    protocol: HTTPProtocol,
    length: int | None,
    loop: asyncio.AbstractEventLoop,
    bytes_max: int = BODY_BYTES_MAX,
) -> bytes:
    """The body, at most ``bytes_max`` bytes; ``length`` is what ``body_length`` makes of its announcement. Raises
    HttpError 400, 408, 413, 415."""
    if length == 0 or (length is None and "transfer-encoding" not in headers):
        return b""
    check_content_type(headers.get("content-type"))
    try:
        return await (_chunked(protocol, bytes_max) if length is None else _announced(protocol, loop))
    except (ProtocolClosed, ProtocolError) as error:
        raise HttpError(400, "the body broke off") from error


async def json_of(
    scope: Scope, protocol: HTTPProtocol, decoder: "msgspec.json.Decoder[T]", bytes_max: int = BODY_BYTES_MAX
) -> T:
    """The body as ``decoder`` wants it, none as an empty object. Raises as ``body_of``, and INVALID_ARGUMENT."""
    length = body_length(scope.headers.get("content-length"), bytes_max)
    octets = await body_of(scope.headers, protocol, length, asyncio.get_running_loop(), bytes_max)
    return decoded(octets or b"{}", decoder)


def decoded(body: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """What a body says. Raises INVALID_ARGUMENT for what ``decoder`` does not take."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_argument(("body", str(error) or "is not JSON")) from error


async def _announced(protocol: HTTPProtocol, loop: asyncio.AbstractEventLoop) -> bytes:
    # As asyncio.timeout, at a third of its price: this is the way of every purchase.
    # A future of Granian's own, which its stubs call a coroutine.
    reading: asyncio.Future[bytes] = protocol()  # type: ignore[assignment]
    ends_at = loop.time() + _BODY_S_MAX
    timer = loop.call_at(ends_at, reading.cancel)
    try:
        return bytes(await reading)
    except asyncio.CancelledError:
        if loop.time() < ends_at:
            raise
        raise HttpError(408, _LATE_BODY) from None
    finally:
        timer.cancel()


async def _chunked(protocol: HTTPProtocol, bytes_max: int) -> bytes:
    received = bytearray()
    try:
        async with asyncio.timeout(_BODY_S_MAX):
            async for chunk in protocol:
                received += chunk
                if len(received) > bytes_max:
                    raise too_large(bytes_max)
    except TimeoutError:
        raise HttpError(408, _LATE_BODY) from None
    return bytes(received)
