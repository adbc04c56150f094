"""The HTTP application (RSGI): the door, where a sold-out sale is refused, and an answer for whatever goes on."""

import asyncio
import uuid
from functools import lru_cache

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.admission import LENGTHS_WITHOUT_WISH, body_length, is_idempotency_key
from gateway.buying import OVERLOADED_WORDS
from gateway.following import Followed
from gateway.parts import Parts
from gateway.problems import SOLD_OUT, Answer, Headers, HttpError, ToldError, domain_problem, http_problem
from gateway.requests import body_of
from gateway.routes import Routes
from mesh.errors import DomainError, from_rpc_error
from mesh.identity import fingerprint
from mesh.logs import get_logger

log = get_logger(__name__)

#: Whoever is told this sends its next request on another connection, and a balancer to another gateway.
_CLOSE = ("connection", "close")
_SOLD_OUT_HEADERS, _SOLD_OUT_BODY = SOLD_OUT.headers, SOLD_OUT.body


@lru_cache(maxsize=256)
def _overloaded(retry_after_ms: int) -> Answer:
    return domain_problem(
        DomainError(ErrorReason.ERROR_REASON_OVERLOADED, OVERLOADED_WORDS, retry_after_ms=retry_after_ms)
    )


class App:
    """Answers every request; nothing a client sends makes it fail. Runs in one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._metrics = parts.metrics
        self._buying = parts.buying
        self._at_door = parts.followers.by_path
        self._find = Routes(parts).find
        # Kept: asking asyncio for it costs a system call each time (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        #: Requests under way that were not refused at the door.
        self.in_flight = 0
        self._ending = parts.ending

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answers one request."""
        followed = self._at_door.get(scope.path)
        if followed is None or scope.method != "POST":
            await self._count_and_answer(scope, protocol)
            return
        headers = scope.headers
        key, length = headers.get("idempotency-key"), headers.get("content-length")
        # Whether the body, unread, may ask for the waitlist: then a sale that is sold out is not all there is to say.
        may_wish = length not in LENGTHS_WITHOUT_WISH and (length is not None or "transfer-encoding" in headers)
        if key is None or not is_idempotency_key(key) or (may_wish and not _is_small(length)):
            await self._count_and_answer(scope, protocol)
            return
        # The door: nothing before the sale's turn looks further than this process.
        stock, mark, now = followed.stock, fingerprint(key), self._now()
        followed.asked_at = now
        if (
            stock.is_sold_out_for(mark, now)
            and not may_wish
            and (stock.sole or await followed.second_look.confirms(mark))
        ):
            self._refuse_at_door(protocol)
        elif self._buying.is_full:
            self._shed_at_door(protocol, now)
        elif stock.is_held_by(mark):
            await self._count_and_answer(scope, protocol)
        else:
            self.in_flight += 1
            try:
                # Before its turn, or a body that never comes would keep others from the last units.
                body = await body_of(headers, protocol, body_length(length), self._loop)
            except Exception as error:  # noqa: BLE001 (every error becomes an answer)
                self._send(protocol, "buy", _refusal(error, "buy"))
                return
            finally:
                self.in_flight -= 1
            await self._in_turn(scope, protocol, followed, mark, body, may_wish=may_wish)

    async def _in_turn(
        self, scope: Scope, protocol: HTTPProtocol, followed: Followed, mark: int, body: bytes, *, may_wish: bool
    ) -> None:
        """Buys once it is the request's turn. ``may_wish``: whether it may ask for the waitlist."""
        stock, turns = followed.stock, followed.turns
        if await turns.enter():
            try:
                # The last unit may have gone while it waited.
                if (
                    stock.is_sold_out_for(mark, self._now())
                    and not may_wish
                    and (stock.sole or await followed.second_look.confirms(mark))
                ):
                    self._refuse_at_door(protocol)
                elif self._buying.is_full:
                    # Others have come meanwhile: those whose bodies came first, or all who waited for the last unit and
                    # would wait in line. A refusal further in costs several times as much.
                    self._shed_at_door(protocol, self._now())
                else:
                    await self._count_and_answer(scope, protocol, body)
            finally:
                turns.leave()
        else:
            self._shed_at_door(protocol, self._now())

    def _shed_at_door(self, protocol: HTTPProtocol, now: float) -> None:
        self._metrics.shed_at_door += 1
        # Told to the nearest 10 ms, so that the few answers that there are need not be made each time.
        answer = _overloaded(-(-self._buying.return_after_ms(now) // 10) * 10)
        self._respond(protocol, 429, answer.headers, answer.body)

    def _refuse_at_door(self, protocol: HTTPProtocol) -> None:
        self._metrics.sold_out_at_door += 1
        self._respond(protocol, 409, _SOLD_OUT_HEADERS, _SOLD_OUT_BODY)

    async def _count_and_answer(self, scope: Scope, protocol: HTTPProtocol, body: bytes | None = None) -> None:
        self.in_flight += 1
        try:
            await self._answer(scope, protocol, body)
        finally:
            self.in_flight -= 1

    async def _answer(self, scope: Scope, protocol: HTTPProtocol, body: bytes | None) -> None:
        route, answer = "none", None
        try:
            route, work = self._find(scope, protocol, body)
            answer = await work
        except Exception as error:  # noqa: BLE001 (every error becomes an answer)
            answer = _refusal(error, route)
        if answer is None:
            self._metrics.answered(route, 200, "STREAM")
            return
        self._send(protocol, route, answer)

    def _send(self, protocol: HTTPProtocol, route: str, answer: Answer) -> None:
        self._metrics.answered(route, answer.status, answer.reason)
        self._respond(protocol, answer.status, answer.headers, answer.body)

    def _respond(self, protocol: HTTPProtocol, status: int, headers: Headers, body: bytes) -> None:
        """Sends an answer; the last one of its connection once no more requests are wanted."""
        protocol.response_bytes(status, [*headers, _CLOSE] if self._ending.is_set() else headers, body)


def _refusal(error: Exception, route: str) -> Answer:
    """The answer that an error becomes. The text of one that nobody expected stays here."""
    match error:
        case ToldError():
            answer = _refusal(error.error, route)
            return Answer(answer.status, [*answer.headers, *error.headers], answer.body, answer.reason)
        case HttpError():
            return http_problem(error)
        case DomainError():
            return domain_problem(error)
        case grpc.aio.AioRpcError():
            return domain_problem(from_rpc_error(error))
    error_id = uuid.uuid4().hex[:12]
    log.error("unexpected error", route=route, error_id=error_id, exc_info=error)
    return domain_problem(DomainError(ErrorReason.ERROR_REASON_INTERNAL, metadata={"error_id": error_id}))


def _is_small(content_length: str | None) -> bool:
    """Whether the door may leave the body unread; the whole check is `admission.body_length`."""
    return content_length is None or len(content_length) < 4
