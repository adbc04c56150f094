"""The document as a whole."""

from typing import Any

from gateway.openapi import buyers, operators
from gateway.openapi.operator_schemas import OPERATOR_SCHEMAS
from gateway.openapi.parts import RESPONSES
from gateway.openapi.schemas import SCHEMAS

_WORDS = """\
Sells shares of a fund to many people at once. Every refusal is a problem of RFC 9457 whose `reason` says why.

A purchase is named by its user, sale and Idempotency-Key; send the same request again after a lost answer. Told to
come again (429, 503, 504), wait as long as `Retry-After` says. Times are RFC 3339 in UTC, money is in minor units.
More fields and more states may come; ignore what you do not know.

What a user sends most is limited: `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` tell how it stands
(draft-ietf-httpapi-ratelimit-headers-06). What anybody may see has an `ETag`; what is a user's own is never cached."""


def openapi_document() -> dict[str, Any]:
    """The contract, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Flash sale", "version": "1", "description": _WORDS},
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "purchases", "description": "Of the user whom the bearer token names"},
            {"name": "sales", "description": "For everybody"},
            {"name": "operators", "description": "For bearers of the operator role"},
            {"name": "service", "description": "About the gateway itself"},
        ],
        "paths": {**buyers.PATHS, **operators.PATHS},
        "components": {
            "schemas": {**SCHEMAS, **OPERATOR_SCHEMAS},
            "responses": RESPONSES,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
