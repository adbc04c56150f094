"""Operations of buyers, and of everybody."""

from gateway.admission import BODY_BYTES_MAX
from gateway.openapi.json_schema import Schema, ref, text, whole
from gateway.openapi.parts import (
    BEARER,
    ETAG,
    IF_NONE_MATCH,
    OPEN,
    OWN,
    PAGE_TOKEN,
    PURCHASE_ID,
    RATE_HEADERS,
    SALE_FILTER,
    SALE_ID,
    WITH_BODY,
    Operation,
    answer,
    json_body,
    parameter,
    problems,
)
from mesh.validation import ID_LENGTH_MAX

_UNCHANGED = {"304": {"description": "The client has it", "headers": ETAG}}
_KEY = parameter(
    "Idempotency-Key",
    "header",
    text(
        "Printable ASCII without space at the ends",
        pattern=f"^[!-~]([ -~]{{0,{ID_LENGTH_MAX - 2}}}[!-~])?$",
        maxLength=ID_LENGTH_MAX,
        minLength=1,
    ),
    "Names this wish: the same key is the same purchase of the token's user and the sale, however often it is sent",
    required=True,
)
_WAIT = parameter(
    "wait",
    "query",
    {"type": "number", "minimum": 0, "maximum": 30, "default": 0},
    "Answer only once the purchase is final, or has left the line if it waits in one, or after so many seconds",
)
_CURRENCY = parameter(
    "currency", "query", text("ISO 4217", pattern="^[A-Z]{3}$", default="EUR"), "The account's currency"
)
_LAST_EVENT = parameter(
    "Last-Event-ID", "header", text("An event's id"), "The last event seen before a reconnect: nothing older is sent"
)


#: One event. There is no way in OpenAPI 3.1 to say that there are many.
_EVENT = {
    "type": "object",
    "description": "One of the events",
    "properties": {
        "event": text("What it tells", enum=["stock", "unavailable"]),
        "id": text("Names the reading: `Last-Event-ID` after a reconnect"),
        "data": text("A Stock; of `unavailable` an object with a `reason`", contentMediaType="application/json"),
        "retry": whole("Delay before a reconnect, milliseconds"),
    },
}


def _public(operation_id: str, summary: str, schema: str, parameters: list[Schema], *, missing: bool) -> Operation:
    """A read of what anybody may see, which caches may keep and must ask for again."""
    return {
        "operationId": operation_id,
        "tags": ["sales"],
        "summary": summary,
        "parameters": [*parameters, IF_NONE_MATCH],
        "responses": {
            "200": answer("As it is, at most a second ago", ref(schema), ETAG),
            **_UNCHANGED,
            **problems((*OPEN, 404) if missing else OPEN),
        },
    }


def _own(operation_id: str, summary: str, schema: str, parameters: list[Schema]) -> Operation:
    """A read of what is the token's user's own."""
    return {
        "operationId": operation_id,
        "tags": ["purchases"],
        "summary": summary,
        "security": BEARER,
        "parameters": parameters,
        "responses": {"200": answer("As it is now", ref(schema)), **problems(OWN)},
    }


def _follow(operation_id: str) -> Schema:
    return {"operationId": operation_id, "parameters": {"purchase_id": "$response.body#/purchase_id"}}


PATHS: dict[str, dict[str, Operation]] = {
    "/v1/sales/{sale_id}/purchases": {
        "post": {
            "operationId": "buy",
            "tags": ["purchases"],
            "summary": "Buy shares, or wait in line for them",
            "description": "Answered once the purchase is durable; what becomes of it is told under `Location`. After a"
            " lost answer, 429, 503 and 504 send the same request with the same Idempotency-Key again: it is the same"
            " purchase, and a winner is never told that it lost.",
            "security": BEARER,
            "parameters": [SALE_ID, _KEY],
            "requestBody": {
                "required": False,
                "description": f"At most {BODY_BYTES_MAX} bytes",
                "content": json_body(ref("Wish")),
            },
            "responses": {
                "202": answer(
                    "RESERVED: shares are set aside and will be paid for. WAITLISTED: it waits in line",
                    ref("Accepted"),
                    {
                        "Location": {
                            "required": True,
                            "description": "The purchase",
                            "schema": text("A path", pattern="^/v1/purchases/"),
                        },
                        **RATE_HEADERS,
                    },
                    links={
                        "purchase": _follow("getPurchase"),
                        "receipt": _follow("getReceipt"),
                        "cancel": _follow("cancelPurchase"),
                        "refund": _follow("refundPurchase"),
                    },
                ),
                **problems((400, 401, 403, 404, 409, 429, 431, 500, 503, 504, *WITH_BODY), rate=True),
            },
        }
    },
    "/v1/purchases": {
        "get": _own("listPurchases", "The user's own purchases, up to 100", "Purchases", [SALE_FILTER, PAGE_TOKEN])
    },
    "/v1/purchases/{purchase_id}": {
        "get": _own("getPurchase", "One purchase, or what becomes of it", "Purchase", [PURCHASE_ID, _WAIT]),
        "delete": {
            "operationId": "cancelPurchase",
            "tags": ["purchases"],
            "summary": "Cancel a purchase that waits in line or is not being settled yet",
            "security": BEARER,
            "parameters": [PURCHASE_ID],
            "responses": {
                "200": answer("It is cancelled, now or since earlier", ref("Purchase"), RATE_HEADERS),
                **problems((*OWN, 409), rate=True),
            },
        },
    },
    "/v1/purchases/{purchase_id}/refund": {
        "post": {
            "operationId": "refundPurchase",
            "tags": ["purchases"],
            "summary": "Give the shares back for the money",
            "security": BEARER,
            "parameters": [PURCHASE_ID],
            "responses": {
                "200": answer("It is REFUNDED", ref("Purchase"), RATE_HEADERS),
                "202": answer("It is REFUNDING", ref("Purchase"), RATE_HEADERS),
                **problems((*OWN, 409), rate=True),
            },
        }
    },
    "/v1/purchases/{purchase_id}/receipt": {
        "get": _own("getReceipt", "Everything about one purchase", "Receipt", [PURCHASE_ID])
    },
    "/v1/balance": {"get": _own("getBalance", "What is on the user's account", "Balance", [_CURRENCY])},
    "/v1/sales": {"get": _public("listSales", "The newest sales", "Sales", [], missing=False)},
    "/v1/sales/{sale_id}": {"get": _public("getSale", "A sale's terms and state", "Sale", [SALE_ID], missing=True)},
    "/v1/sales/{sale_id}/stock": {"get": _public("getStock", "A sale's stock", "Stock", [SALE_ID], missing=True)},
    "/v1/sales/{sale_id}/stock/stream": {
        "get": {
            "operationId": "streamStock",
            "tags": ["sales"],
            "summary": "A sale's stock, each time it changes",
            "description": "Server-sent events: `stock` with a Stock as its data, and `unavailable` while it cannot be"
            " read. At most twenty a second; ends after a minute, and browsers reconnect.",
            "parameters": [SALE_ID, _LAST_EVENT],
            "responses": {
                "200": {"description": "Events", "content": {"text/event-stream": {"schema": _EVENT}}},
                **problems((*OPEN, 404)),
            },
        }
    },
    "/healthz": {
        "get": {
            "operationId": "getHealth",
            "tags": ["service"],
            "summary": "Whether this gateway takes purchases",
            "responses": {
                "200": answer("It does", ref("Health")),
                "503": answer("It drains, or the Purchase Service is away", ref("Health")),
            },
        }
    },
    "/openapi.json": {
        "get": {
            "operationId": "getContract",
            "tags": ["service"],
            "summary": "This document",
            "parameters": [IF_NONE_MATCH],
            "responses": {"200": answer("OpenAPI 3.1", {"type": "object"}, ETAG), **_UNCHANGED},
        }
    },
}
