"""What anybody may see: the sales, each one's terms, its stock and the stream of it."""

from typing import Any

import msgspec
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.etags import tagged_json
from gateway.parts import Parts
from gateway.problems import Answer, HttpError
from gateway.requests import allow, uuid_of


class SaleRoutes:
    """Routes under /v1/sales that only read."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def find(self, scope: Scope, protocol: HTTPProtocol, rest: list[str]) -> tuple[str, Any]:
        """As Routes.find, of what comes after /v1/sales."""
        match rest:
            case [sale_id]:
                allow(scope.method, "GET")
                return "sale", self._sale(scope, sale_id)
            case [sale_id, "stock"]:
                allow(scope.method, "GET")
                return "stock", self._stock(scope, sale_id)
            case [sale_id, "stock", "stream"]:
                allow(scope.method, "GET")
                return "stream", self._stream(scope, protocol, sale_id)
            case []:
                allow(scope.method, "GET")
                return "sales", self._sales(scope)
        raise HttpError(404, "there is nothing here")

    async def _sales(self, scope: Scope) -> Answer:
        return tagged_json(await self._parts.reading.sales(), scope.headers.get("if-none-match"))

    async def _sale(self, scope: Scope, sale_text: str) -> Answer:
        value = await self._parts.reading.sale(uuid_of("sale_id", sale_text))
        return tagged_json(msgspec.json.encode(value), scope.headers.get("if-none-match"))

    async def _stock(self, scope: Scope, sale_text: str) -> Answer:
        value = await self._parts.reading.stock(uuid_of("sale_id", sale_text))
        return tagged_json(msgspec.json.encode(value), scope.headers.get("if-none-match"))

    async def _stream(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> None:
        sale_id = uuid_of("sale_id", sale_text)
        await self._parts.streams.serve(sale_id, protocol, scope.headers.get("last-event-id"))
