"""What bodies look like. The code that makes them is `gateway/json_forms.py`."""

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.admission import QUANTITY_MAX
from gateway.openapi.json_schema import Schema, flag, listed, moment, or_null, record, ref, text, uuid, whole
from mesh.errors import reason_name

REASONS = [reason_name(value) for value in ErrorReason.values() if value]
_PURCHASE_STATES = [name.removeprefix("PURCHASE_STATE_") for name, value in purchase.PurchaseState.items() if value]
_SALE_STATES = [name.removeprefix("SALE_STATE_") for name, value in inventory.SaleState.items() if value]


REASON = ref("Reason")
PURCHASE_STATE = ref("PurchaseState")
SALE_STATE = ref("SaleState")
NEXT_PAGE = text("page_token of the next page; empty when this is the last")
_PLACE = {
    "waitlist_position": or_null(whole("Place in line, 1 for the next to be served; null when not known now", 1)),
    "estimated_wait_s": or_null(whole("When its turn may come, seconds from now")),
}
SALE = {
    "sale_id": uuid("The sale"),
    "display_name": text("What people call it"),
    "unit_price": ref("Money"),
    "total": whole("Shares of the sale", 1),
    "per_user_limit": whole("Most shares of one user", 1),
    "per_purchase_limit": whole("Most shares of one purchase", 1),
    "state": SALE_STATE,
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
PURCHASE = {
    "purchase_id": uuid("The purchase"),
    "sale_id": uuid("Its sale"),
    "quantity": whole("Shares", 1),
    "amount": ref("Money"),
    "state": PURCHASE_STATE,
    "share_numbers": listed(whole("A share's number", 1), "The shares owned, ascending; empty unless CONFIRMED"),
    "create_time": or_null(moment("When it was made")),
    "update_time": or_null(moment("When it changed last")),
    **_PLACE,
    "reason": REASON,
}
OPTIONAL = ("waitlist_position", "estimated_wait_s", "reason")
SCHEMAS: dict[str, Schema] = {
    "Reason": text("A reason of the contract (protos/flashsale/common/v1/error_reason.proto)", enum=REASONS),
    "PurchaseState": text(
        "RESERVED, SETTLING, WAITLISTED and REFUNDING go on by themselves; CONFIRMED, FAILED, CANCELLED and REFUNDED"
        " are final; PARKED waits for an operator",
        enum=_PURCHASE_STATES,
    ),
    "SaleState": text("It sells while it is OPEN", enum=_SALE_STATES),
    "Problem": record(
        "RFC 9457 problem details",
        {
            "type": text("urn:flashsale:reason: and the reason"),
            "title": text("The reason in plain words"),
            "status": whole("The HTTP status code", 400, maximum=599),
            "detail": text("What is wrong with this request"),
            "reason": REASON,
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
            "state": PURCHASE_STATE,
            **_PLACE,
        },
        OPTIONAL,
    ),
    "Purchase": record("A purchase as its buyer sees it", PURCHASE, OPTIONAL),
    "Purchases": record(
        "A page of purchases",
        {"purchases": listed(ref("Purchase"), "Purchases, by id"), "next_page_token": NEXT_PAGE},
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
                        "state": PURCHASE_STATE,
                        "time": or_null(moment("When")),
                        "words": text("What happened, in plain words"),
                    },
                ),
                "Every state it was in, oldest first",
            ),
            "words": text("How it stands, in plain words"),
        },
    ),
    "Sale": record("A sale", SALE),
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
}
