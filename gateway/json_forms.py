"""How purchases, sales and stock look as JSON. Times are RFC 3339 in UTC; what is absent or not known is null."""

from typing import Any

from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.problems import known_reason
from mesh.errors import reason_name

_STATE_NAMES: dict[int, str] = {
    value: name.removeprefix("PURCHASE_STATE_") for name, value in purchase.PurchaseState.items()
}
_SALE_STATE_NAMES: dict[int, str] = {
    value: name.removeprefix("SALE_STATE_") for name, value in inventory.SaleState.items()
}


def purchase_state_name(state: int) -> str:
    """ "RESERVED" and so on; "UNKNOWN" for one that this version does not know."""
    return _STATE_NAMES.get(state, "UNKNOWN")


def _sale_state_name(state: int) -> str:
    return _SALE_STATE_NAMES.get(state, "UNKNOWN")


def _reason(reason: int) -> str | None:
    return reason_name(known_reason(reason)) if reason else None


def _time(message: Any, field: str) -> str | None:
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    return value.ToJsonString()


def _money(money: Money) -> dict[str, Any]:
    return {"amount_minor": money.amount_minor, "currency_code": money.currency_code}


def place_json(position: int, estimated_wait_s: int) -> dict[str, Any]:
    """A place in line, 1 for the next to be served; nulls when it cannot be told now."""
    return {
        "waitlist_position": position or None,
        "estimated_wait_s": estimated_wait_s if position else None,
    }


def purchase_json(value: purchase.Purchase) -> dict[str, Any]:
    """A purchase as its buyer sees it. Of one in line its place too, of one that failed the reason."""
    shown: dict[str, Any] = {
        "purchase_id": value.purchase_id,
        "sale_id": value.sale_id,
        "quantity": value.quantity,
        "amount": _money(value.amount),
        "state": purchase_state_name(value.state),
        "share_numbers": list(value.share_numbers),
        "create_time": _time(value, "create_time"),
        "update_time": _time(value, "update_time"),
    }
    if value.state == purchase.PURCHASE_STATE_WAITLISTED:
        shown |= place_json(value.waitlist_position, value.estimated_wait_s)
    if value.reason:
        shown["reason"] = _reason(value.reason)
    return shown


def any_purchase_json(value: purchase.Purchase) -> dict[str, Any]:
    """A purchase as an operator sees it: with whose it is."""
    return {**purchase_json(value), "user_id": value.user_id, "request_id": value.request_id}


def receipt_json(value: purchase.GetReceiptResponse) -> dict[str, Any]:
    """Everything about one purchase. ``reservation`` and ``hold`` are null when there never was any."""
    reservation, hold = value.reservation, value.hold
    return {
        "purchase": purchase_json(value.purchase),
        "reservation": {
            "state": reservation.state,
            "quantity": reservation.quantity,
            "create_time": _time(reservation, "create_time"),
            "update_time": _time(reservation, "update_time"),
        }
        if value.HasField("reservation")
        else None,
        "hold": {
            "state": hold.state,
            "amount": _money(hold.amount),
            "create_time": _time(hold, "create_time"),
            "end_time": _time(hold, "end_time"),
        }
        if value.HasField("hold")
        else None,
        "steps": [
            {"state": purchase_state_name(step.state), "time": _time(step, "time"), "words": step.words}
            for step in value.steps
        ],
        "words": value.words,
    }


def sale_json(value: inventory.Sale) -> dict[str, Any]:
    """A sale as anybody sees it."""
    return {
        "sale_id": value.sale_id,
        "display_name": value.display_name,
        "unit_price": _money(value.unit_price),
        "total": value.total,
        "per_user_limit": value.per_user_limit,
        "per_purchase_limit": value.per_purchase_limit,
        "state": _sale_state_name(value.state),
        "create_time": _time(value, "create_time"),
        "open_time": _time(value, "open_time"),
        "close_time": _time(value, "close_time"),
        "state_time": _time(value, "state_time"),
        "eligible_users_only": value.eligible_users_only,
        "overtaking_allowed": value.overtaking_allowed,
    }


def operated_sale_json(value: inventory.Sale) -> dict[str, Any]:
    """A sale as an operator sees it: with who changed it last ("schedule" or "stock": it did by itself)."""
    return {**sale_json(value), "state_actor": value.state_actor}


def sale_change_json(value: inventory.SaleChange) -> dict[str, Any]:
    """What was done with a sale, by whom and when."""
    return {
        "change_time": _time(value, "change_time"),
        "actor": value.actor,
        "from_state": _sale_state_name(value.from_state) if value.from_state else None,
        "to_state": _sale_state_name(value.to_state),
        "total": value.total,
    }


def stock_json(value: inventory.Stock) -> dict[str, Any]:
    """A stock reading as anybody sees it. While anybody is ``waiting``, what is available is theirs."""
    return {
        "sale_id": value.sale_id,
        "available": value.available,
        "reserved": value.reserved,
        "sold": value.sold,
        "total": value.total,
        "waiting": value.waiting,
        "open": value.open,
    }


def count_json(value: purchase.PurchaseCount) -> dict[str, Any]:
    """How many purchases are in a state for a reason."""
    return {
        "state": purchase_state_name(value.state),
        "reason": _reason(value.reason),
        "purchases": value.purchases,
        "units": value.units,
    }


def statement_json(value: purchase.GetSaleStatementResponse) -> dict[str, Any]:
    """What a sale has come to, with a page of those who won nothing."""
    return {
        "sale_id": value.sale_id,
        "final": value.final,
        "total": value.total,
        "sold_units": value.sold_units,
        "sold_purchases": value.sold_purchases,
        "captured": _money(value.captured),
        "refunded": _money(value.refunded),
        "unfinished_purchases": value.unfinished_purchases,
        "non_win_counts": [
            {
                "state": purchase_state_name(each.state),
                "reason": _reason(each.reason),
                "words": each.words,
                "purchases": each.purchases,
                "units": each.units,
            }
            for each in value.non_win_counts
        ],
        "non_wins": [
            {
                "purchase_id": each.purchase_id,
                "user_id": each.user_id,
                "quantity": each.quantity,
                "state": purchase_state_name(each.state),
                "reason": _reason(each.reason),
                "end_time": _time(each, "end_time"),
            }
            for each in value.non_wins
        ],
        "next_page_token": value.next_page_token,
    }


def dead_letter_json(value: purchase.DeadLetter) -> dict[str, Any]:
    """A message that no worker can settle."""
    return {
        "first_seen_time": _time(value, "first_seen_time"),
        "partition": value.partition if value.partition >= 0 else None,
        "body_bytes": value.body_bytes,
        "reason": value.reason,
        "purchase_ids": list(value.purchase_ids),
    }


def replayed_json(value: purchase.ReplayParkedOutcome) -> dict[str, Any]:
    """What became of a parked purchase; without a reason it is on its way again."""
    return {"purchase_id": value.purchase_id, "reason": _reason(value.reason)}
