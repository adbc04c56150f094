"""What bodies look like: JSON Schema (draft 2020-12). The code that makes them is `gateway/json_forms.py`."""

from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.admission import QUANTITY_MAX
from gateway.metrics import ANSWER_KINDS
from gateway.operating import PARKED_MAX, REPLAY_MAX, TOTAL_MAX
from mesh.errors import reason_name

Schema = dict[str, Any]

REASONS = [reason_name(value) for value in ErrorReason.values() if value]
_PURCHASE_STATES = [name.removeprefix("PURCHASE_STATE_") for name, value in purchase.PurchaseState.items() if value]
_SALE_STATES = [name.removeprefix("SALE_STATE_") for name, value in inventory.SaleState.items() if value]


def ref(name: str) -> Schema:
    """A schema of this document."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    """A string."""
    return {"type": "string", "description": description, **more}


def whole(description: str, minimum: int | None = 0, **more: Any) -> Schema:
    """A whole number, from ``minimum`` on."""
    return {"type": "integer", "description": description, **({} if minimum is None else {"minimum": minimum}), **more}


def number(description: str) -> Schema:
    """A number from 0 on."""
    return {"type": "number", "description": description, "minimum": 0}


def flag(description: str) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": description}


def uuid(description: str) -> Schema:
    """A UUID."""
    return text(description, format="uuid")


def moment(description: str) -> Schema:
    """A time."""
    return text(description, format="date-time")


def listed(items: Schema, description: str, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "description": description, **more}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    if "$ref" in schema:
        return {"oneOf": [schema, {"type": "null"}]}
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **more}


def record(description: str, properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties, all of them there but the ``optional``. There may be others in later versions."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required}


_REASON = text("Why: a reason of the contract (protos/flashsale/common/v1/error_reason.proto)", enum=REASONS)
_PURCHASE_STATE = text(
    "RESERVED, SETTLING, WAITLISTED and REFUNDING go on by themselves; CONFIRMED, FAILED, CANCELLED and REFUNDED are"
    " final; PARKED waits for an operator",
    enum=_PURCHASE_STATES,
)
_SALE_STATE = text("The sale's state; it sells while OPEN", enum=_SALE_STATES)
_NEXT_PAGE = text("page_token of the next page; empty when this is the last")
_PLACE = {
    "waitlist_position": or_null(whole("Place in line, 1 for the next to be served; null when not known now", 1)),
    "estimated_wait_s": or_null(whole("When its turn may come, seconds from now")),
}
_SALE = {
    "sale_id": uuid("The sale"),
    "display_name": text("What people call it"),
    "unit_price": ref("Money"),
    "total": whole("Shares of the sale", 1),
    "per_user_limit": whole("Most shares of one user", 1),
    "per_purchase_limit": whole("Most shares of one purchase", 1),
    "state": _SALE_STATE,
    "create_time": or_null(moment("When it was made")),
    "open_time": or_null(moment("When it opens by itself")),
    "close_time": or_null(moment("When it closes by itself")),
    "state_time": or_null(moment("Since when it is in its state")),
    "eligible_users_only": flag("Whether only some users may buy"),
    "overtaking_allowed": flag("Whether a smaller request may overtake a larger one in line"),
}
_STOCK = {
    "sale_id": uuid("The sale"),
    "available": whole("Shares that nobody has; while anybody waits they are theirs"),
    "reserved": whole("Shares set aside for purchases under way"),
    "sold": whole("Shares that are owned"),
    "total": whole("All shares: the sum of the three"),
    "waiting": whole("Purchases that wait in line"),
    "open": flag("Whether purchases are taken"),
}
_PURCHASE = {
    "purchase_id": uuid("The purchase"),
    "sale_id": uuid("Its sale"),
    "quantity": whole("Shares", 1),
    "amount": ref("Money"),
    "state": _PURCHASE_STATE,
    "share_numbers": listed(whole("A share's number", 1), "The shares owned, ascending; empty unless CONFIRMED"),
    "create_time": or_null(moment("When it was made")),
    "update_time": or_null(moment("When it changed last")),
    **_PLACE,
    "reason": _REASON,
}
_OPTIONAL = ("waitlist_position", "estimated_wait_s", "reason")
_COUNT = {
    "state": _PURCHASE_STATE,
    "reason": or_null(_REASON),
    "purchases": whole("Purchases"),
    "units": whole("Their shares together"),
}
_SETTLEMENT = {
    "settled": whole("Purchases that settlement has ended"),
    "unsettled": whole("Purchases that it has yet to end"),
    "rate_per_s": number("How many it ends a second"),
    "eta_s": or_null(number("When it will be through, seconds; null while nothing moves")),
    "oldest_age_s": or_null(number("Age of the oldest that is not settled, seconds")),
}

SCHEMAS: dict[str, Schema] = {
    "Problem": record(
        "RFC 9457 problem details",
        {
            "type": text("urn:flashsale:reason: and the reason"),
            "title": text("The reason in plain words"),
            "status": whole("The HTTP status code", 400, maximum=599),
            "detail": text("What is wrong with this request"),
            "reason": _REASON,
            "retry_after_ms": whole("When the same request may succeed, milliseconds from now", 1),
            "violations": listed(
                record("A wrong field", {"field": text("Which"), "description": text("What it must be")}),
                "Wrong fields",
            ),
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Details"},
        },
        ("retry_after_ms", "violations", "metadata"),
    ),
    "Money": record(
        "An amount of money",
        {"amount_minor": whole("Minor units, such as cents"), "currency_code": text("ISO 4217", pattern="^[A-Z]{3}$")},
    ),
    "Wish": {
        "type": "object",
        "additionalProperties": False,
        "description": "What a buyer wants; without a body: one share",
        "properties": {
            "quantity": whole("Shares; each sale has a lower limit of its own", 1, maximum=QUANTITY_MAX, default=1),
            "waitlist": flag("Whether to wait in line if there are too few") | {"default": False},
        },
    },
    "Accepted": record(
        "A purchase that is durable",
        {
            "purchase_id": uuid("The purchase, also under Location"),
            "sale_id": uuid("Its sale"),
            "quantity": whole("Shares", 1),
            "state": _PURCHASE_STATE,
            **_PLACE,
        },
        _OPTIONAL,
    ),
    "Purchase": record("A purchase as its buyer sees it", _PURCHASE, _OPTIONAL),
    "Purchases": record(
        "A page of purchases",
        {"purchases": listed(ref("Purchase"), "Purchases, by id"), "next_page_token": _NEXT_PAGE},
    ),
    "Receipt": record(
        "Everything about one purchase",
        {
            "purchase": ref("Purchase"),
            "reservation": or_null(
                record(
                    "The shares set aside",
                    {
                        "state": text("Its state"),
                        "quantity": whole("Shares", 1),
                        "create_time": or_null(moment("When it was made")),
                        "update_time": or_null(moment("When it changed last")),
                    },
                )
            ),
            "hold": or_null(
                record(
                    "The money set aside",
                    {
                        "state": text("Its state"),
                        "amount": ref("Money"),
                        "create_time": or_null(moment("When it was made")),
                        "end_time": or_null(moment("When it was captured or given back")),
                    },
                )
            ),
            "steps": listed(
                record(
                    "One step",
                    {
                        "state": _PURCHASE_STATE,
                        "time": or_null(moment("When")),
                        "words": text("What happened, in plain words"),
                    },
                ),
                "Every state it was in, oldest first",
            ),
            "words": text("How it stands, in plain words"),
        },
    ),
    "Sale": record("A sale", _SALE),
    "Sales": record("Sales", {"sales": listed(ref("Sale"), "The newest 100, drafts left out")}),
    "Stock": record("A reading of a sale's stock, at most a second old", _STOCK),
    "Balance": record(
        "What is on an account",
        {
            "currency_code": text("ISO 4217", pattern="^[A-Z]{3}$"),
            "balance_minor": whole("Money on it, minor units"),
            "held_minor": whole("Of that, set aside for purchases under way"),
            "available_minor": whole("The rest"),
        },
    ),
    "Health": record("Whether purchases are taken", {"state": text("serving, draining, or what is away")}),
    "OperatedSale": record(
        "A sale as an operator sees it",
        {**_SALE, "state_actor": text('Who changed it last; "schedule", "stock": itself')},
    ),
    "SaleChanges": record(
        "A page of what was done with a sale",
        {
            "changes": listed(
                record(
                    "One change",
                    {
                        "change_time": or_null(moment("When")),
                        "actor": text("Who"),
                        "from_state": or_null(_SALE_STATE),
                        "to_state": _SALE_STATE,
                        "total": whole("Shares of the sale from then on", 1),
                    },
                ),
                "Changes, oldest first",
            ),
            "next_page_token": _NEXT_PAGE,
        },
    ),
    "Statement": record(
        "What a sale has come to",
        {
            "sale_id": uuid("The sale"),
            "final": flag("Whether nothing of it can change any more, but by refunds"),
            "total": whole("Shares of the sale", 1),
            "sold_units": whole("Shares owned"),
            "sold_purchases": whole("Purchases that own them"),
            "captured": ref("Money"),
            "refunded": ref("Money"),
            "unfinished_purchases": whole("Purchases under way"),
            "non_win_counts": listed(
                record("How many did not win for one reason", {**_COUNT, "words": text("The reason in plain words")}),
                "Those who did not win",
            ),
            "non_wins": listed(
                record(
                    "One who did not win",
                    {
                        "purchase_id": uuid("The purchase"),
                        "user_id": text("Whose"),
                        "quantity": whole("Shares", 1),
                        "state": _PURCHASE_STATE,
                        "reason": or_null(_REASON),
                        "end_time": or_null(moment("When it ended")),
                    },
                ),
                "A page of them",
            ),
            "next_page_token": _NEXT_PAGE,
        },
    ),
    "DeadLetters": record(
        "Messages that no worker can settle",
        {
            "count": whole("How many there are"),
            "letters": listed(
                record(
                    "One message",
                    {
                        "first_seen_time": or_null(moment("When it was put aside")),
                        "partition": or_null(whole("The partition it was met in")),
                        "body_bytes": whole("Its size"),
                        "reason": text("Why it cannot be settled"),
                        "purchase_ids": listed(text("An id"), "Purchases that it names"),
                    },
                ),
                "The oldest",
            ),
        },
    ),
    "Replay": {
        "type": "object",
        "additionalProperties": False,
        "description": "How many dead letters to send again; without a body: 20",
        "properties": {"most": whole("Letters", 1, maximum=REPLAY_MAX, default=20)},
    },
    "Replayed": record(
        "What became of dead letters",
        {
            "purchases": whole("Purchases that are queued again"),
            "letters_left": whole("Letters that stay"),
            "why": listed(text("A reason"), "Why those stay that were looked at"),
        },
    ),
    "ParkedPurchases": record(
        "A page of purchases whose attempts are exhausted",
        {
            "purchases": listed(
                record(
                    "A purchase with whose it is",
                    {**_PURCHASE, "user_id": text("Whose"), "request_id": text("Its Idempotency-Key")},
                    _OPTIONAL,
                ),
                "Purchases",
            ),
            "next_page_token": _NEXT_PAGE,
        },
    ),
    "ParkedIds": {
        "type": "object",
        "additionalProperties": False,
        "required": ["purchase_ids"],
        "properties": {"purchase_ids": listed(uuid("A purchase"), "Parked purchases", minItems=1, maxItems=PARKED_MAX)},
    },
    "ReplayedParked": record(
        "What became of parked purchases",
        {
            "outcomes": listed(
                record("One", {"purchase_id": uuid("Which"), "reason": or_null(_REASON)}),
                "One for each, in order; without a reason it is on its way again",
            )
        },
    ),
    "Total": {
        "type": "object",
        "additionalProperties": False,
        "required": ["total"],
        "properties": {"total": whole("Shares of the sale from now on; never fewer", 1, maximum=TOTAL_MAX)},
    },
    "Overview": record(
        "All sales at one look",
        {
            "time": moment("When it was made"),
            "sales": listed(
                record(
                    "A sale",
                    {
                        **_SALE,
                        "state_actor": text("Who changed it last"),
                        "stock": or_null(ref("Stock")),
                        "counts": or_null(listed(record("Purchases in one state", _COUNT), "Purchases by state")),
                        "settlement": or_null(record("How far settlement is", _SETTLEMENT)),
                    },
                ),
                "The newest 50",
            ),
            "answers": record(
                "Answers of this gateway by kind",
                {
                    kind: record("Of this kind", {"total": whole("All"), "per_s": number("A second")})
                    for kind in ANSWER_KINDS
                },
            ),
            "queue": record(
                "The settlement queue; null: not known",
                {
                    "messages": or_null(whole("Messages that wait")),
                    "dead_letters": or_null(whole("Messages that no worker can settle")),
                    "oldest_age_s": or_null(number("Age of the oldest purchase that is not settled, seconds")),
                },
            ),
            "audit": record(
                "The promises at a glance",
                {
                    "verdict": text("The verdict", enum=["kept", "broken", "unknown"]),
                    "checked_at": or_null(moment("When it was looked at last")),
                    "lines": listed(
                        record(
                            "One promise",
                            {
                                "promise": text("Its name"),
                                "text": text("What it says, or what is wrong"),
                                "ok": or_null(flag("Whether it is kept; null: not judged")),
                            },
                        ),
                        "The promises",
                    ),
                },
            ),
            "away": listed(text("A service"), "Services that could not be asked"),
        },
    ),
}
