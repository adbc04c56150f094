"""What operators do: look at everything, open, pause and close sales, replay what got stuck. All need their role."""

from typing import Any

import msgspec
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.admission import Whole, whole
from gateway.operating import PAGE_MAX, PARKED_MAX, REPLAY_MAX, TOTAL_MAX
from gateway.parts import Parts
from gateway.problems import Answer, HttpError, encoded_answer, json_answer
from gateway.requests import allow, authorization_of, json_of, page_size, page_token, uuid_of
from mesh.errors import invalid_argument


class _TotalBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    total: Whole


class _ReplayBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    most: Whole = 20


class _ParkedBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    purchase_ids: list[str]


_TOTAL = msgspec.json.Decoder(_TotalBody, strict=True)
_REPLAY = msgspec.json.Decoder(_ReplayBody, strict=True)
_PARKED = msgspec.json.Decoder(_ParkedBody, strict=True)


class OperatorRoutes:
    """Routes under /v1/operator. Whoever asks is known, and named in the record of what was done, by the token."""

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
        self._operator(scope)
        most = whole("most", (await json_of(scope, protocol, _REPLAY)).most, 1, REPLAY_MAX)
        return json_answer(200, await self._operating.replayed_dead_letters(most))

    async def _parked(self, scope: Scope) -> Answer:
        self._operator(scope)
        return json_answer(200, await self._operating.parked(page_size(scope, PAGE_MAX), page_token(scope)))

    async def _replay_parked(self, scope: Scope, protocol: HTTPProtocol) -> Answer:
        self._operator(scope)
        texts = (await json_of(scope, protocol, _PARKED)).purchase_ids
        if not 1 <= len(texts) <= PARKED_MAX:
            raise invalid_argument(("purchase_ids", f"must be 1 to {PARKED_MAX} ids"))
        ids = [uuid_of(f"purchase_ids[{place}]", text) for place, text in enumerate(texts)]
        return json_answer(200, await self._operating.replayed_parked(ids))
