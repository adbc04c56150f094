"""What operations are made of: parameters, headers and answers that many of them share."""

from collections.abc import Sequence
from typing import Any

from gateway.admission import BODY_BYTES_MAX
from gateway.openapi.json_schema import Schema, ref, text, whole
from gateway.problems import CHALLENGES

Operation = dict[str, Any]

#: What each status means here, wherever it is given.
_PROBLEMS = {
    400: "INVALID_ARGUMENT, PURCHASE_LIMIT_EXCEEDED: the request is wrong; `violations` names the fields",
    401: "UNAUTHENTICATED: no bearer token, or none that is good",
    403: "PERMISSION_DENIED, NOT_ELIGIBLE: the token's bearer may not do this",
    404: "SALE_NOT_FOUND, PURCHASE_NOT_FOUND (also when it is another user's), ACCOUNT_NOT_FOUND",
    408: "INVALID_ARGUMENT: the body did not come in time",
    409: "The state of things forbids it, and the same request will not succeed: SOLD_OUT, WAITLIST_FULL,"
    " SALE_NOT_OPEN, USER_LIMIT_REACHED, RESERVATION_RELEASED, REQUEST_ID_REUSED, PURCHASE_NOT_CANCELLABLE,"
    " PURCHASE_NOT_REFUNDABLE, REFUND_WINDOW_OVER, SALE_STATE_CONFLICT, SALE_CLOSED",
    413: f"INVALID_ARGUMENT: the body is larger than {BODY_BYTES_MAX} bytes, unless the operation says otherwise",
    415: "INVALID_ARGUMENT: the body is not application/json",
    429: "OVERLOADED, USER_RATE_LIMITED: send the same request again after the delay",
    431: "INVALID_ARGUMENT: the headers are too long",
    500: "INTERNAL: a fault of ours, in our log under `metadata.error_id`",
    503: "UNAVAILABLE, STOCK_RECALIBRATING: nothing was decided; send the same request again after the delay",
    504: "DEADLINE_EXCEEDED: the outcome is not known; send the same request again after the delay",
}
_RETRIED = (429, 503, 504)

_RETRY_AFTER = {"description": "Delay before the same request is sent again, seconds", "schema": whole("Seconds", 1)}
_RATE = {
    "RateLimit-Limit": {"description": "Requests that a user may send at once", "schema": whole("Requests", 1)},
    "RateLimit-Remaining": {"description": "How many of them are left", "schema": whole("Requests")},
    "RateLimit-Reset": {"description": "When all of them will be there again, seconds", "schema": whole("Seconds")},
}
ETAG = {"ETag": {"required": True, "description": "Names this body", "schema": text("An entity tag", pattern='^".+"$')}}


def required(headers: Schema) -> Schema:
    """These headers, always there."""
    return {name: {"required": True, **header} for name, header in headers.items()}


#: Headers of answers that used up one of a user's requests.
RATE_HEADERS = required(_RATE)


def json_body(schema: Schema) -> Schema:
    """A body of JSON."""
    return {"application/json": {"schema": schema}}


def answer(description: str, schema: Schema | None = None, headers: Schema | None = None, **more: Any) -> Schema:
    """An answer, with a body of JSON if there is a ``schema``."""
    made: Schema = {"description": description, **more}
    if schema is not None:
        made["content"] = json_body(schema)
    if headers:
        made["headers"] = headers
    return made


def _problem(status: int, *, rate: bool) -> Schema:
    headers: Schema = {"Retry-After": {"required": True, **_RETRY_AFTER}} if status in _RETRIED else {}
    if status == 401:
        headers["WWW-Authenticate"] = {
            "required": True,
            "description": "Asks for a bearer token (RFC 6750); says what is wrong with one that was sent",
            "schema": text("A challenge", enum=list(CHALLENGES)),
        }
    made: Schema = {
        "description": _PROBLEMS[status],
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    if headers or rate:
        made["headers"] = headers | (_RATE if rate else {})
    return made


#: Every refusal; and as it is given, perhaps, to a request that has used up one of its user's.
RESPONSES: Schema = {
    **{f"Problem{status}": _problem(status, rate=False) for status in _PROBLEMS},
    **{f"Rated{status}": _problem(status, rate=True) for status in _PROBLEMS},
}


def problems(statuses: Sequence[int], *, rate: bool = False) -> Schema:
    """Refusals of an operation; with ``rate`` they may tell how many requests its user has left."""
    kind = "Rated" if rate else "Problem"
    return {str(status): {"$ref": f"#/components/responses/{kind}{status}"} for status in sorted(statuses)}


def parameter(name: str, place: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    """A parameter in the path, the query or a header."""
    return {
        "name": name,
        "in": place,
        "required": required or place == "path",
        "description": description,
        "schema": schema,
    }


#: A UUID as it must be written.
_UUID = text("A UUID", format="uuid", pattern="^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$")

SALE_ID = parameter("sale_id", "path", _UUID, "The sale")
PURCHASE_ID = parameter("purchase_id", "path", _UUID, "The purchase")
SALE_FILTER = parameter("sale_id", "query", _UUID, "Only purchases of this sale")
PAGE_TOKEN = parameter(
    "page_token", "query", text("A token", maxLength=1024), "`next_page_token` of the page before; left out: the first"
)
IF_NONE_MATCH = parameter(
    "If-None-Match", "header", text("Entity tags"), "`ETag` of the body that the client has; 304 if it is still the one"
)


def page_size(most: int) -> Schema:
    """The parameter of lists."""
    return parameter("page_size", "query", whole("Items", 1, maximum=most, default=most), "Most items of the page")


#: What any operation may answer, with a token and without.
OPEN = (400, 429, 500, 503, 504)
OWN = (400, 401, 404, 429, 431, 500, 503, 504)
OPERATORS = (400, 401, 403, 404, 409, 429, 431, 500, 503, 504)
WITH_BODY = (408, 413, 415)
BEARER: list[Schema] = [{"bearer": []}]
