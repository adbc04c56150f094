"""What operators do: look at everything, change sales, say who may buy, replay what got stuck. All need their role."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.admission import Whole, whole
from gateway.operating import ELIGIBLE_BYTES_MAX, ELIGIBLE_MAX, PAGE_MAX, PARKED_MAX, REPLAY_MAX, TOTAL_MAX
from gateway.parts import Parts
from gateway.problems import Answer, HttpError, encoded_answer, json_answer
from gateway.requests import allow, authorization_of, json_of, page_size, page_token, uuid_of
from mesh.errors import invalid_argument
from mesh.logs import get_logger, named

log = get_logger(__name__)

#: A time that says of what zone it is.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _TotalBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    total: Whole


class _ScheduleBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    # Neither may be left out: who changes one of the two says what becomes of the other.
    open_time: Moment | None
    close_time: Moment | None


class _EligibleBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    user_ids: list[str]


class _ReplayBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    most: Whole = 20


class _ParkedBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    purchase_ids: list[str]


_TOTAL = msgspec.json.Decoder(_TotalBody, strict=True)
_SCHEDULE = msgspec.json.Decoder(_ScheduleBody, strict=True)
_ELIGIBLE = msgspec.json.Decoder(_EligibleBody, strict=True)
_REPLAY = msgspec.json.Decoder(_ReplayBody, strict=True)
_PARKED = msgspec.json.Decoder(_ParkedBody, strict=True)


def _timestamp(field: str, moment: datetime | None) -> Timestamp | None:
    """As the contract has times. Raises INVALID_ARGUMENT beyond the years that it knows."""
    if moment is None:
        return None
    made = Timestamp()
    try:
        made.FromDatetime(moment)
    except (ValueError, OverflowError) as error:
        raise invalid_argument((field, "must be a time in the years 1 to 9999")) from error
    return made


class OperatorRoutes:
    """Routes under /v1/operator. Whoever asks is known, and named in the record of what was done, by the token: in the
    sale's changes, or in the log where there is no other record."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._operating = parts.operating

    def find(self, scope: Scope, protocol: HTTPProtocol, rest: list[str]) -> tuple[str, Any]:
        """As Routes.find, of what comes after /v1/operator."""
        match rest:
            case ["overview"]:
                allow(scope.method, "GET")
                return "operator_overview", self._overview(scope)
            case ["sales", sale_id, "open" | "pause" | "close" as verb]:
                allow(scope.method, "POST")
                return f"operator_{verb}", self._change(scope, sale_id, verb)
            case ["sales", sale_id, "total"]:
                allow(scope.method, "POST")
                return "operator_total", self._total(scope, protocol, sale_id)
            case ["sales", sale_id, "schedule"]:
                allow(scope.method, "POST")
                return "operator_schedule", self._schedule(scope, protocol, sale_id)
            case ["sales", sale_id, "eligible-users"]:
                allow(scope.method, "POST")
                return "operator_eligible_users", self._eligible_users(scope, protocol, sale_id)
            case ["sales", sale_id, "statement"]:
                allow(scope.method, "GET")
                return "operator_statement", self._statement(scope, sale_id)
            case ["sales", sale_id, "changes"]:
                allow(scope.method, "GET")
                return "operator_changes", self._changes(scope, sale_id)
            case ["dead-letters"]:
                allow(scope.method, "GET")
                return "operator_dead_letters", self._dead_letters(scope)
            case ["dead-letters", "replay"]:
                allow(scope.method, "POST")
                return "operator_replay_dead_letters", self._replay_dead_letters(scope, protocol)
            case ["parked"]:
                allow(scope.method, "GET")
                return "operator_parked", self._parked(scope)
            case ["parked", "replay"]:
                allow(scope.method, "POST")
                return "operator_replay_parked", self._replay_parked(scope, protocol)
        raise HttpError(404, "there is nothing here")

    def _operator(self, scope: Scope) -> str:
        return self._parts.tokens.operator(authorization_of(scope))

    async def _overview(self, scope: Scope) -> Answer:
        self._operator(scope)
        return encoded_answer(await self._parts.overview.read())

    async def _change(self, scope: Scope, sale_text: str, verb: str) -> Answer:
        actor = self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        return json_answer(200, await self._operating.changed(verb, sale_id, actor))

    async def _total(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> Answer:
        actor = self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        total = whole("total", (await json_of(scope, protocol, _TOTAL)).total, 1, TOTAL_MAX)
        return json_answer(200, await self._operating.raised(sale_id, total, actor))

    async def _schedule(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> Answer:
        actor = self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        wanted = await json_of(scope, protocol, _SCHEDULE)
        times = _timestamp("open_time", wanted.open_time), _timestamp("close_time", wanted.close_time)
        return json_answer(200, await self._operating.scheduled(sale_id, *times, actor))

    async def _eligible_users(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> Answer:
        actor = self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        user_ids = (await json_of(scope, protocol, _ELIGIBLE, ELIGIBLE_BYTES_MAX)).user_ids
        if not 1 <= len(user_ids) <= ELIGIBLE_MAX:
            raise invalid_argument(("user_ids", f"must be 1 to {ELIGIBLE_MAX} users"))
        done = await self._operating.made_eligible(sale_id, user_ids)
        log.info("users made eligible", actor=actor, sale_id=sale_id, **done)
        return json_answer(200, done)

    async def _statement(self, scope: Scope, sale_text: str) -> Answer:
        self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        return json_answer(200, await self._operating.statement(sale_id, page_size(scope, PAGE_MAX), page_token(scope)))

    async def _changes(self, scope: Scope, sale_text: str) -> Answer:
        self._operator(scope)
        sale_id = uuid_of("sale_id", sale_text)
        return json_answer(200, await self._operating.changes(sale_id, page_size(scope, PAGE_MAX), page_token(scope)))

    async def _dead_letters(self, scope: Scope) -> Answer:
        self._operator(scope)
        return json_answer(200, await self._operating.dead_letters(page_size(scope, REPLAY_MAX)))

    async def _replay_dead_letters(self, scope: Scope, protocol: HTTPProtocol) -> Answer:
        actor = self._operator(scope)
        most = whole("most", (await json_of(scope, protocol, _REPLAY)).most, 1, REPLAY_MAX)
        done = await self._operating.replayed_dead_letters(most)
        log.info("dead letters replayed", actor=actor, purchases=done["purchases"], letters_left=done["letters_left"])
        return json_answer(200, done)

    async def _parked(self, scope: Scope) -> Answer:
        self._operator(scope)
        return json_answer(200, await self._operating.parked(page_size(scope, PAGE_MAX), page_token(scope)))

    async def _replay_parked(self, scope: Scope, protocol: HTTPProtocol) -> Answer:
        actor = self._operator(scope)
        texts = (await json_of(scope, protocol, _PARKED)).purchase_ids
        if not 1 <= len(texts) <= PARKED_MAX:
            raise invalid_argument(("purchase_ids", f"must be 1 to {PARKED_MAX} ids"))
        ids = [uuid_of(f"purchase_ids[{place}]", text) for place, text in enumerate(texts)]
        done = await self._operating.replayed_parked(ids)
        log.info("parked purchases replayed", actor=actor, purchase_ids=named(ids), purchases=len(ids))
        return json_answer(200, done)
