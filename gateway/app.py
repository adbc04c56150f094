"""The HTTP application (RSGI): the door, where a sold-out sale is refused, and the routes behind it."""

import asyncio
import math
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from granian.rsgi import HTTPProtocol, ProtocolClosed, ProtocolError, Scope  # type: ignore[attr-defined]

from gateway.admission import (
    BODY_BYTES_MAX,
    body_length,
    check_authorization_length,
    check_content_type,
    idempotency_key,
    is_idempotency_key,
    quantity_of,
)
from gateway.buying import OVERLOADED_WORDS, Buying
from gateway.following import StockFollowers
from gateway.metrics import GatewayMetrics
from gateway.problems import Answer, HttpError, domain_problem, http_problem, json_answer, known_reason
from gateway.reading import Reading, purchase_state_name
from gateway.streams import StockStreams
from gateway.tokens import TokenChecker
from gateway.upstream import Upstream
from gateway.user_rate import UserRate
from mesh.errors import DomainError, from_rpc_error, invalid_argument
from mesh.identity import fingerprint
from mesh.logs import get_logger
from mesh.validation import Violations

log = get_logger(__name__)

#: How long a body may take to come, s.
_BODY_S_MAX = 5.0
_LATE_BODY = "the body did not come in time"
#: Longest ?wait= of a long poll, s.
_WAIT_S_MAX = 30.0

_SOLD_OUT = domain_problem(DomainError(ErrorReason.ERROR_REASON_SOLD_OUT, "no share is available now"))
_SOLD_OUT_HEADERS, _SOLD_OUT_BODY = _SOLD_OUT.headers, _SOLD_OUT.body


@lru_cache(maxsize=256)
def _overloaded(retry_after_ms: int) -> Answer:
    return domain_problem(
        DomainError(ErrorReason.ERROR_REASON_OVERLOADED, OVERLOADED_WORDS, retry_after_ms=retry_after_ms)
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the application is made of."""

    tokens: TokenChecker
    user_rate: UserRate
    followers: StockFollowers
    buying: Buying
    reading: Reading
    streams: StockStreams
    upstream: Upstream
    metrics: GatewayMetrics
    draining: asyncio.Event


class App:
    """Answers every request; nothing a client sends makes it fail. Runs in one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._metrics = parts.metrics
        self._buying = parts.buying
        self._at_door = parts.followers.by_path
        # Kept: asking asyncio for it costs a system call each time (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        #: Requests under way that were not refused at the door.
        self.in_flight = 0

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answers one request."""
        followed = self._at_door.get(scope.path)
        if followed is None or scope.method != "POST":
            await self._count_and_answer(scope, protocol)
            return
        headers = scope.headers
        key = headers.get("idempotency-key")
        if key is None or not is_idempotency_key(key) or not _is_small(headers.get("content-length")):
            await self._count_and_answer(scope, protocol)
            return
        # The door: nothing before the sale's turn looks further than this process.
        stock, turns, mark, now = followed.stock, followed.turns, fingerprint(key), self._now()
        followed.asked_at = now
        if stock.is_sold_out_for(mark, now) and (stock.sole or await followed.second_look.confirms(mark)):
            self._refuse_at_door(protocol)
        elif self._buying.is_full:
            self._shed_at_door(protocol, now)
        elif stock.is_held_by(mark):
            await self._count_and_answer(scope, protocol)
        elif await turns.enter():
            try:
                # The last unit may have gone while it waited.
                if stock.is_sold_out_for(mark, self._now()) and (
                    stock.sole or await followed.second_look.confirms(mark)
                ):
                    self._refuse_at_door(protocol)
                else:
                    await self._count_and_answer(scope, protocol)
            finally:
                turns.leave()
        else:
            self._shed_at_door(protocol, now)

    def _shed_at_door(self, protocol: HTTPProtocol, now: float) -> None:
        self._metrics.shed_at_door += 1
        # Told to the nearest 10 ms, so that the few answers that there are need not be made each time.
        answer = _overloaded(-(-self._buying.return_after_ms(now) // 10) * 10)
        protocol.response_bytes(429, answer.headers, answer.body)

    def _refuse_at_door(self, protocol: HTTPProtocol) -> None:
        self._metrics.sold_out_at_door += 1
        protocol.response_bytes(409, _SOLD_OUT_HEADERS, _SOLD_OUT_BODY)

    async def _count_and_answer(self, scope: Scope, protocol: HTTPProtocol) -> None:
        self.in_flight += 1
        try:
            await self._answer(scope, protocol)
        finally:
            self.in_flight -= 1

    async def _answer(self, scope: Scope, protocol: HTTPProtocol) -> None:
        route, answer = "none", None
        try:
            route, work = self._route(scope, protocol)
            answer = await work
        except HttpError as http_error:
            answer = http_problem(http_error)
        except DomainError as domain_error:
            answer = domain_problem(domain_error)
        except grpc.aio.AioRpcError as rpc_error:
            answer = domain_problem(from_rpc_error(rpc_error))
        except Exception as error:
            # Every error becomes an answer; its text stays here.
            error_id = uuid.uuid4().hex[:12]
            log.error("unexpected error", route=route, error_id=error_id, exc_info=error)
            answer = domain_problem(
                DomainError(ErrorReason.ERROR_REASON_INTERNAL, metadata={"error_id": error_id}),
            )
        if answer is None:
            self._metrics.answered(route, 200, "STREAM")
            return
        self._metrics.answered(route, answer.status, answer.reason)
        protocol.response_bytes(answer.status, answer.headers, answer.body)

    def _route(self, scope: Scope, protocol: HTTPProtocol) -> tuple[str, Any]:
        """The route's name for the metrics, and its work. Raises HttpError 404 and 405."""
        method = scope.method
        match scope.path.split("/"):
            case ["", "v1", "sales", sale_id, "purchases"]:
                _allow(method, "POST")
                return "buy", self._timed_buy(scope, protocol, sale_id)
            case ["", "v1", "purchases", purchase_id]:
                _allow(method, "GET", "DELETE")
                if method == "DELETE":
                    return "cancel", self._cancel(scope, purchase_id)
                return "purchase", self._purchase(scope, protocol, purchase_id)
            case ["", "v1", "sales", sale_id]:
                _allow(method, "GET")
                return "sale", self._sale(sale_id)
            case ["", "v1", "sales", sale_id, "stock"]:
                _allow(method, "GET")
                return "stock", self._stock(sale_id)
            case ["", "v1", "sales", sale_id, "stock", "stream"]:
                _allow(method, "GET")
                return "stream", self._stream(protocol, sale_id)
            case ["", "v1", "balance"]:
                _allow(method, "GET")
                return "balance", self._balance(scope)
            case ["", "healthz"]:
                _allow(method, "GET")
                return "healthz", self._healthz()
        raise HttpError(404, "there is nothing here")

    async def _timed_buy(self, scope: Scope, protocol: HTTPProtocol, sale_id: str) -> Answer:
        start = time.perf_counter()
        try:
            return await self._buy(scope, protocol, sale_id)
        finally:
            self._metrics.purchase_took(time.perf_counter() - start)

    async def _buy(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> Answer:
        """Checks from cheap to dear, then buys."""
        parts, headers, now = self._parts, scope.headers, self._now()
        length = body_length(headers.get("content-length"))
        authorization = headers.get("authorization")
        check_authorization_length(authorization)
        request_id = idempotency_key(headers.get("idempotency-key"))
        at_door = self._at_door.get(scope.path)
        sale_id = at_door.stock.sale_id if at_door is not None else _uuid("sale_id", sale_text)
        mark = fingerprint(request_id)
        # The door has looked at most; not at a large body, or at an id that is not in its canonical form.
        known = parts.followers.known(sale_id)
        if known is not None and known.is_surely_sold_out_for(mark, now):
            return _SOLD_OUT
        if parts.followers.is_missing(sale_id, now):
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND, metadata={"sale_id": sale_id})
        if parts.draining.is_set():
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "shutting down; send the same request again")
        parts.buying.check_room(now)
        user_id = parts.tokens.user_id(authorization)
        self._check_user_rate(user_id, now)
        followed = parts.followers.follow(sale_id, now)
        quantity = quantity_of(await _body(headers, protocol, length, self._loop))
        outcome = await parts.buying.buy(
            purchase.CreatePurchaseRequest(request_id=request_id, user_id=user_id, sale_id=sale_id, quantity=quantity),
            followed.stock if followed is not None else None,
            mark,
        )
        if outcome.reason:
            raise DomainError(
                known_reason(outcome.reason),
                _REFUSALS.get(outcome.reason, ""),
                retry_after_ms=outcome.retry_after_ms or None,
            )
        body = {
            "purchase_id": outcome.purchase_id,
            "sale_id": sale_id,
            "quantity": quantity,
            "state": purchase_state_name(outcome.state),
        }
        return json_answer(202, body, [("location", f"/v1/purchases/{outcome.purchase_id}")])

    def _check_user_rate(self, user_id: str, now: float) -> None:
        wait_ms = self._parts.user_rate.take(user_id, now)
        if wait_ms:
            raise DomainError(
                ErrorReason.ERROR_REASON_USER_RATE_LIMITED,
                "you are sending more often than allowed",
                metadata={"limit_per_s": f"{self._parts.user_rate.rate_per_s:g}"},
                retry_after_ms=wait_ms,
            )

    def _user_id(self, scope: Scope) -> str:
        authorization = scope.headers.get("authorization")
        check_authorization_length(authorization)
        return self._parts.tokens.user_id(authorization)

    async def _purchase(self, scope: Scope, protocol: HTTPProtocol, purchase_text: str) -> Answer | None:
        user_id = self._user_id(scope)
        purchase_id = _uuid("purchase_id", purchase_text)
        wait_s = _wait_s(_parameter(scope, "wait"))
        if wait_s == 0:
            return json_answer(200, await self._parts.reading.purchase_now(purchase_id, user_id))
        gone = asyncio.ensure_future(protocol.client_disconnect())
        try:
            value = await self._parts.reading.final_purchase(purchase_id, user_id, wait_s, gone)
        finally:
            gone.cancel()
        return json_answer(200, value or {})

    async def _cancel(self, scope: Scope, purchase_text: str) -> Answer:
        user_id = self._user_id(scope)
        self._check_user_rate(user_id, self._now())
        purchase_id = _uuid("purchase_id", purchase_text)
        return json_answer(200, await self._parts.reading.cancelled(purchase_id, user_id))

    async def _sale(self, sale_text: str) -> Answer:
        return json_answer(200, await self._parts.reading.sale(_uuid("sale_id", sale_text)))

    async def _stock(self, sale_text: str) -> Answer:
        return json_answer(200, await self._parts.reading.stock(_uuid("sale_id", sale_text)))

    async def _stream(self, protocol: HTTPProtocol, sale_text: str) -> None:
        await self._parts.streams.serve(_uuid("sale_id", sale_text), protocol)

    async def _balance(self, scope: Scope) -> Answer:
        user_id = self._user_id(scope)
        violations = Violations()
        currency_code = violations.currency("currency", _parameter(scope, "currency") or "EUR")
        violations.raise_if_any()
        return json_answer(200, await self._parts.reading.balance(user_id, currency_code))

    async def _healthz(self) -> Answer:
        draining, serving = self._parts.draining.is_set(), self._parts.upstream.serving
        state = "draining" if draining else "serving" if serving else "purchase service unreachable"
        return json_answer(200 if serving and not draining else 503, {"state": state})


_R = ErrorReason
#: What a refused buyer is told, where the reason's own words are not enough.
_REFUSALS: dict[int, str] = {
    _R.ERROR_REASON_SOLD_OUT: "no share is available now",
    _R.ERROR_REASON_SALE_NOT_OPEN: "the sale takes no purchases now",
    _R.ERROR_REASON_USER_LIMIT_REACHED: "you already have as many shares of this sale as one user may",
    _R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED: "more than this sale sells in one purchase",
    _R.ERROR_REASON_REQUEST_ID_REUSED: "this Idempotency-Key was used with other contents",
    _R.ERROR_REASON_RESERVATION_RELEASED: "this purchase has ended; use a new Idempotency-Key to buy again",
    _R.ERROR_REASON_UNAVAILABLE: "not available now; send the same request again after the delay",
    _R.ERROR_REASON_STOCK_RECALIBRATING: "stock is being recounted; send the same request again after the delay",
    _R.ERROR_REASON_DEADLINE_EXCEEDED: "the outcome is not known; send the same request again",
}


def _is_small(content_length: str | None) -> bool:
    """Whether the door may leave the body unread; the whole check is `admission.body_length`."""
    return content_length is None or len(content_length) < 4


def _allow(method: str, *methods: str) -> None:
    if method not in methods:
        raise HttpError(405, f"use {' or '.join(methods)}", [("allow", ", ".join(methods))])


def _uuid(field: str, text: str) -> str:
    violations = Violations()
    canonical = violations.uuid(field, text)
    violations.raise_if_any()
    return canonical


def _parameter(scope: Scope, name: str) -> str | None:
    """The first value of a query parameter."""
    if not scope.query_string:
        return None
    try:
        values = parse_qs(scope.query_string, keep_blank_values=True, max_num_fields=20).get(name)
    except ValueError as error:
        raise invalid_argument(("query", "has too many parameters")) from error
    return values[0] if values else None


def _wait_s(text: str | None) -> float:
    """How long a long poll may wait, seconds; 0: not at all."""
    if text is None:
        return 0.0
    try:
        seconds = float(text) if len(text) <= 16 else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _WAIT_S_MAX:
        raise invalid_argument(("wait", f"must be 0 to {_WAIT_S_MAX:g} seconds"))
    return seconds


async def _body(headers: Any, protocol: HTTPProtocol, length: int | None, loop: asyncio.AbstractEventLoop) -> bytes:
    """The body, at most BODY_BYTES_MAX bytes. Raises HttpError 400, 408, 413, 415."""
    if length == 0 or (length is None and "transfer-encoding" not in headers):
        return b""
    check_content_type(headers.get("content-type"))
    try:
        return await (_chunked(protocol) if length is None else _announced(protocol, loop))
    except (ProtocolClosed, ProtocolError) as error:
        raise HttpError(400, "the body broke off") from error


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


async def _chunked(protocol: HTTPProtocol) -> bytes:
    received = bytearray()
    try:
        async with asyncio.timeout(_BODY_S_MAX):
            async for chunk in protocol:
                received += chunk
                if len(received) > BODY_BYTES_MAX:
                    raise HttpError(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    except TimeoutError:
        raise HttpError(408, _LATE_BODY) from None
    return bytes(received)
