"""The table of routes: which path and method is whose work."""

from typing import Any

import msgspec
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.etags import tagged_json
from gateway.openapi.document import openapi_document
from gateway.operator_routes import OperatorRoutes
from gateway.parts import Parts
from gateway.problems import Answer, HttpError, json_answer
from gateway.purchase_routes import PurchaseRoutes
from gateway.requests import allow, authorization_of, parameter
from gateway.sale_routes import SaleRoutes
from gateway.static_pages import StaticPages
from mesh.validation import Violations


class Routes:
    """Finds the work of a request. What is asked for most comes first."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._purchases = PurchaseRoutes(parts)
        self._sales = SaleRoutes(parts)
        self._operator = OperatorRoutes(parts)
        self._pages = StaticPages()
        self._contract = msgspec.json.encode(openapi_document())

    def find(self, scope: Scope, protocol: HTTPProtocol, body: bytes | None = None) -> tuple[str, Any]:
        """The route's name for the metrics, and its work: to be awaited, an Answer, or None if it has answered by
        itself. ``body`` is that of a purchase if it has been read already. Raises HttpError 404 and 405."""
        method, segments = scope.method, scope.path.split("/")
        match segments:
            case ["", "v1", "sales", sale_id, "purchases"]:
                allow(method, "POST")
                return "buy", self._purchases.timed_buy(scope, protocol, sale_id, body)
            case ["", "v1", "purchases", *rest]:
                return self._purchases.find(scope, protocol, rest)
            case ["", "v1", "sales", *rest]:
                return self._sales.find(scope, protocol, rest)
            case ["", "v1", "balance"]:
                allow(method, "GET")
                return "balance", self._balance(scope)
            case ["", "v1", "operator", *rest]:
                return self._operator.find(scope, protocol, rest)
            case ["", "healthz"]:
                allow(method, "GET")
                return "healthz", self._healthz()
            case ["", "openapi.json"]:
                allow(method, "GET")
                return "openapi", self._openapi(scope)
            case ["", ""] | ["", "operator"] | ["", "sales", _] | ["", "pages", *_]:
                allow(method, "GET", "HEAD")
                return "page", self._page(scope)
        raise HttpError(404, "there is nothing here")

    async def _balance(self, scope: Scope) -> Answer:
        user_id = self._parts.tokens.user_id(authorization_of(scope))
        violations = Violations()
        named = parameter(scope, "currency")
        currency_code = violations.currency("currency", "EUR" if named is None else named)
        violations.raise_if_any()
        return json_answer(200, await self._parts.reading.balance(user_id, currency_code))

    async def _healthz(self) -> Answer:
        draining, serving = self._parts.ending.is_set(), self._parts.upstream.serving
        state = "draining" if draining else "serving" if serving else "purchase service unreachable"
        return json_answer(200 if serving and not draining else 503, {"state": state})

    async def _openapi(self, scope: Scope) -> Answer:
        return tagged_json(self._contract, scope.headers.get("if-none-match"))

    async def _page(self, scope: Scope) -> Answer:
        """A page, or what pages are made of. Raises HttpError 404."""
        headers = scope.headers
        answer = self._pages.answer(scope.path, headers.get("if-none-match"), headers.get("accept-encoding"))
        if answer is None:
            raise HttpError(404, "there is nothing here")
        return answer
