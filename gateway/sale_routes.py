"""What anybody may see: the sales, each one's terms, its stock and the stream of it."""

from typing import Any

from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.parts import Parts
from gateway.problems import Answer, HttpError, encoded_answer, json_answer
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
                return "sale", self._sale(sale_id)
            case [sale_id, "stock"]:
                allow(scope.method, "GET")
                return "stock", self._stock(sale_id)
            case [sale_id, "stock", "stream"]:
                allow(scope.method, "GET")
                return "stream", self._stream(scope, protocol, sale_id)
            case []:
                allow(scope.method, "GET")
                return "sales", self._sales()
        raise HttpError(404, "there is nothing here")

    async def _sales(self) -> Answer:
        return encoded_answer(await self._parts.reading.sales())

    async def _sale(self, sale_text: str) -> Answer:
        return json_answer(200, await self._parts.reading.sale(uuid_of("sale_id", sale_text)))

    async def _stock(self, sale_text: str) -> Answer:
        return json_answer(200, await self._parts.reading.stock(uuid_of("sale_id", sale_text)))

    async def _stream(self, scope: Scope, protocol: HTTPProtocol, sale_text: str) -> None:
        sale_id = uuid_of("sale_id", sale_text)
        await self._parts.streams.serve(sale_id, protocol, scope.headers.get("last-event-id"))
