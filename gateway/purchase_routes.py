"""What buyers do: buy, wait in line, look, cancel, ask for a refund or a receipt."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.admission import PurchaseBody, body_length, idempotency_key, purchase_of
from gateway.json_forms import place_json, purchase_state_name
from gateway.parts import Parts
from gateway.problems import SOLD_OUT, Answer, Headers, HttpError, ToldError, json_answer, known_reason
from gateway.rate_headers import RateHeaders
from gateway.requests import allow, authorization_of, body_of, page_token, parameter, uuid_of, wait_s
from mesh.errors import DomainError
from mesh.identity import fingerprint

_WAITLISTED = purchase.PURCHASE_STATE_WAITLISTED

_R = ErrorReason
#: What a refused buyer is told, where the reason's own words are not enough.
_REFUSALS: dict[int, str] = {
    _R.ERROR_REASON_SOLD_OUT: "no share is available now",
    _R.ERROR_REASON_WAITLIST_FULL: "no share is available now, and no more may wait in line",
    _R.ERROR_REASON_NOT_ELIGIBLE: "this sale is for certain users only, and you are not among them",
    _R.ERROR_REASON_SALE_NOT_OPEN: "the sale takes no purchases now",
    _R.ERROR_REASON_USER_LIMIT_REACHED: "you already have as many shares of this sale as one user may",
    _R.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED: "more than this sale sells in one purchase",
    _R.ERROR_REASON_REQUEST_ID_REUSED: "this Idempotency-Key was used with other contents",
    _R.ERROR_REASON_RESERVATION_RELEASED: "this purchase has ended; use a new Idempotency-Key to buy again",
    _R.ERROR_REASON_UNAVAILABLE: "not available now; send the same request again after the delay",
    _R.ERROR_REASON_STOCK_RECALIBRATING: "stock is being recounted; send the same request again after the delay",
    _R.ERROR_REASON_DEADLINE_EXCEEDED: "the outcome is not known; send the same request again",
}


class PurchaseRoutes:
    """Routes under /v1/purchases, and the one that buys."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._at_door = parts.followers.by_path
        self._rate_headers = RateHeaders(parts.user_rate.rate_per_s, parts.user_rate.burst)
        # Kept: asking asyncio for it costs a system call each time (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time

    def find(self, scope: Scope, protocol: HTTPProtocol, rest: list[str]) -> tuple[str, Any]:
        """As Routes.find, of what comes after /v1/purchases."""
        method = scope.method
        match rest:
            case [purchase_id]:
                allow(method, "GET", "DELETE")
                if method == "DELETE":
                    return "cancel", self._cancel(scope, purchase_id)
                return "purchase", self._purchase(scope, protocol, purchase_id)
            case []:
                allow(method, "GET")
                return "purchases", self._own(scope)
            case [purchase_id, "refund"]:
                allow(method, "POST")
                return "refund", self._refund(scope, purchase_id)
            case [purchase_id, "receipt"]:
                allow(method, "GET")
                return "receipt", self._receipt(scope, purchase_id)
        raise HttpError(404, "there is nothing here")

    async def timed_buy(self, scope: Scope, protocol: HTTPProtocol, sale_id: str, body: bytes | None) -> Answer:
        """Buys, and notes how long it took. ``body``, unless it is still to be read."""
        start = time.perf_counter()
        try:
            return await self._buy(scope, protocol, sale_id, body)
        finally:
            self._parts.metrics.purchase_took(time.perf_counter() - start)

    async def _buy(self, scope: Scope, protocol: HTTPProtocol, sale_text: str, body: bytes | None) -> Answer:
        """Checks from cheap to dear, then buys."""
        parts, headers, now = self._parts, scope.headers, self._now()
        length = body_length(headers.get("content-length"))
        authorization = authorization_of(scope)
        request_id = idempotency_key(headers.get("idempotency-key"))
        at_door = self._at_door.get(scope.path)
        sale_id = at_door.stock.sale_id if at_door is not None else uuid_of("sale_id", sale_text)
        mark = fingerprint(request_id)
        wanted: PurchaseBody | None = None
        # The door has looked at most; not at a body that may ask for the waitlist, a large one, or an id that is not in
        # its canonical form.
        known = parts.followers.find(sale_id)
        if known is not None and known.stock.is_sold_out_for(mark, now):
            body = await body_of(headers, protocol, length, self._loop) if body is None else body
            wanted = purchase_of(body)
            # A unit may have come back while the body came.
            if (
                not wanted.waitlist
                and known.stock.is_sold_out_for(mark, self._now())
                and (known.stock.sole or await known.second_look.confirms(mark))
            ):
                return SOLD_OUT
        if parts.followers.is_missing(sale_id, now):
            raise DomainError(ErrorReason.ERROR_REASON_SALE_NOT_FOUND, metadata={"sale_id": sale_id})
        if parts.draining.is_set():
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "shutting down; send the same request again")
        parts.buying.check_room(now)
        user_id = parts.tokens.user_id(authorization)
        rate = self._take_turn(user_id, now)
        try:
            followed = parts.followers.follow(sale_id, now)
            if wanted is None:
                body = await body_of(headers, protocol, length, self._loop) if body is None else body
                wanted = purchase_of(body)
            outcome = await parts.buying.buy(
                purchase.CreatePurchaseRequest(
                    request_id=request_id,
                    user_id=user_id,
                    sale_id=sale_id,
                    quantity=int(wanted.quantity),
                    waitlist=wanted.waitlist,
                ),
                followed.stock if followed is not None else None,
                mark,
                now,
            )
            if outcome.reason:
                raise DomainError(
                    known_reason(outcome.reason),
                    _REFUSALS.get(outcome.reason, ""),
                    retry_after_ms=outcome.retry_after_ms or None,
                )
        except Exception as error:
            raise ToldError(error, rate) from error
        shown = {
            "purchase_id": outcome.purchase_id,
            "sale_id": sale_id,
            "quantity": wanted.quantity,
            "state": purchase_state_name(outcome.state),
        }
        told = [("location", f"/v1/purchases/{outcome.purchase_id}"), *rate]
        if outcome.state == _WAITLISTED:
            shown |= place_json(outcome.waitlist_position, outcome.estimated_wait_s)
            return json_answer(202, shown, told, reason="WAITLISTED")
        return json_answer(202, shown, told)

    def _take_turn(self, user_id: str, now: float) -> Headers:
        """The headers that tell a user what is left. Raises USER_RATE_LIMITED, with them, when nothing is."""
        rate = self._parts.user_rate
        wait_ms = rate.take(user_id, now)
        headers = self._rate_headers.of(rate.left)
        if wait_ms:
            refusal = DomainError(
                ErrorReason.ERROR_REASON_USER_RATE_LIMITED,
                "you are sending more often than allowed",
                metadata={"limit_per_s": f"{self._parts.user_rate.rate_per_s:g}"},
                retry_after_ms=wait_ms,
            )
            raise ToldError(refusal, headers)
        return headers

    @contextmanager
    def _turn(self, scope: Scope) -> Iterator[tuple[str, Headers]]:
        """Takes one of the turns of whoever asks: the user, and the headers that tell what is left, which a refusal
        within has too."""
        user_id = self._user_id(scope)
        headers = self._take_turn(user_id, self._now())
        try:
            yield user_id, headers
        except Exception as error:
            raise ToldError(error, headers) from error

    def _user_id(self, scope: Scope) -> str:
        return self._parts.tokens.user_id(authorization_of(scope))

    async def _purchase(self, scope: Scope, protocol: HTTPProtocol, purchase_text: str) -> Answer:
        user_id = self._user_id(scope)
        purchase_id = uuid_of("purchase_id", purchase_text)
        seconds = wait_s(parameter(scope, "wait"))
        if seconds == 0:
            return json_answer(200, await self._parts.reading.purchase_now(purchase_id, user_id))
        gone = asyncio.ensure_future(protocol.client_disconnect())
        try:
            value = await self._parts.reading.awaited_purchase(purchase_id, user_id, seconds, gone)
        finally:
            gone.cancel()
        return json_answer(200, value or {})

    async def _own(self, scope: Scope) -> Answer:
        user_id = self._user_id(scope)
        sale_text = parameter(scope, "sale_id")
        sale_id = uuid_of("sale_id", sale_text) if sale_text is not None else ""
        return json_answer(200, await self._parts.reading.own_purchases(user_id, sale_id, page_token(scope)))

    async def _cancel(self, scope: Scope, purchase_text: str) -> Answer:
        with self._turn(scope) as (user_id, rate):
            purchase_id = uuid_of("purchase_id", purchase_text)
            return json_answer(200, await self._parts.reading.cancelled(purchase_id, user_id), rate)

    async def _refund(self, scope: Scope, purchase_text: str) -> Answer:
        with self._turn(scope) as (user_id, rate):
            value = await self._parts.reading.refunded(uuid_of("purchase_id", purchase_text), user_id)
            # Accepted, and not done before it is REFUNDED.
            return json_answer(200 if value["state"] == "REFUNDED" else 202, value, rate)

    async def _receipt(self, scope: Scope, purchase_text: str) -> Answer:
        user_id = self._user_id(scope)
        return json_answer(200, await self._parts.reading.receipt(uuid_of("purchase_id", purchase_text), user_id))
