"""Operations of operators: their token says so (claim `role`), and names them in the record of what was done."""

from gateway.openapi.json_schema import Schema, ref
from gateway.openapi.parts import (
    BEARER,
    OPERATORS,
    PAGE_TOKEN,
    SALE_ID,
    WITH_BODY,
    Operation,
    answer,
    json_body,
    page_size,
    problems,
)
from gateway.operating import PAGE_MAX, REPLAY_MAX


def _operation(
    operation_id: str,
    summary: str,
    schema: str,
    parameters: list[Schema] | None = None,
    body: str | None = None,
    *,
    body_required: bool = False,
) -> Operation:
    made: Operation = {
        "operationId": operation_id,
        "tags": ["operators"],
        "summary": summary,
        "security": BEARER,
        "parameters": parameters or [],
        "responses": {
            "200": answer("Done, or as it is", ref(schema)),
            **problems((*OPERATORS, *WITH_BODY) if body else OPERATORS),
        },
    }
    if body is not None:
        made["requestBody"] = {"required": body_required, "content": json_body(ref(body))}
    return made


_PAGES = [page_size(PAGE_MAX), PAGE_TOKEN]

PATHS: dict[str, dict[str, Operation]] = {
    "/v1/operator/overview": {"get": _operation("getOverview", "All sales at one look", "Overview")},
    **{
        f"/v1/operator/sales/{{sale_id}}/{verb}": {
            "post": _operation(f"{verb}Sale", f"{verb.capitalize()} a sale", "OperatedSale", [SALE_ID])
        }
        for verb in ("open", "pause", "close")
    },
    "/v1/operator/sales/{sale_id}/total": {
        "post": _operation(
            "raiseTotal", "Raise a sale's total", "OperatedSale", [SALE_ID], body="Total", body_required=True
        )
    },
    "/v1/operator/sales/{sale_id}/schedule": {
        "post": _operation(
            "scheduleSale",
            "Set when a sale opens and closes by itself",
            "OperatedSale",
            [SALE_ID],
            body="Schedule",
            body_required=True,
        )
    },
    "/v1/operator/sales/{sale_id}/eligible-users": {
        "post": _operation(
            "addEligibleUsers",
            "Add users to those who may buy in a sale that is for eligible users only; nobody is ever taken off",
            "EligibleUsers",
            [SALE_ID],
            body="UserIds",
            body_required=True,
        )
    },
    "/v1/operator/sales/{sale_id}/statement": {
        "get": _operation("getStatement", "What a sale has come to", "Statement", [SALE_ID, *_PAGES])
    },
    "/v1/operator/sales/{sale_id}/changes": {
        "get": _operation("listChanges", "What was done with a sale, by whom", "SaleChanges", [SALE_ID, *_PAGES])
    },
    "/v1/operator/dead-letters": {
        "get": _operation(
            "listDeadLetters", "Messages that no worker can settle", "DeadLetters", [page_size(REPLAY_MAX)]
        )
    },
    "/v1/operator/dead-letters/replay": {
        "post": _operation(
            "replayDeadLetters", "Send dead letters to their partitions again", "Replayed", body="Replay"
        )
    },
    "/v1/operator/parked": {
        "get": _operation("listParked", "Purchases whose attempts are exhausted", "ParkedPurchases", _PAGES)
    },
    "/v1/operator/parked/replay": {
        "post": _operation(
            "replayParked",
            "Let workers try parked purchases again",
            "ReplayedParked",
            body="ParkedIds",
            body_required=True,
        )
    },
}
