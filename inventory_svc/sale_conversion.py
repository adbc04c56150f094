"""Between the contract's messages of a sale's life and the domain; conversion.py has those of its stock."""

from datetime import UTC, datetime

from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc.conversion import price_message
from inventory_svc.sale import Sale, SaleChange, SaleState, SaleTerms, Times
from mesh import page_token
from mesh.timestamps import timestamp
from mesh.validation import ID_LENGTH_MAX, Violations, is_name

_TOTAL_MAX = 10_000_000
_PRICE_MINOR_MAX = 1_000_000_000
_NAME_LENGTH_MAX = 200
_PER_PURCHASE_MAX = 1_000
_ELIGIBLE_BATCH_MAX = 10_000
#: Largest id of a change: PostgreSQL's bigint.
_CHANGE_ID_MAX = 2**63 - 1


def _check_actor(violations: Violations, actor: str) -> None:
    if actor and not is_name(actor):
        violations.add("actor", f"must be up to {ID_LENGTH_MAX} printable characters without space at the ends")


def _time_of(
    violations: Violations, field: str, message: "pb.CreateSaleRequest | pb.ScheduleSaleRequest"
) -> datetime | None:
    """The time in a field, None when it is absent; to the microsecond, as the database keeps it."""
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    try:
        found: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violations.add(field, "must be a time in the years 1 to 9999")
        return None
    return found


def _check_times(violations: Violations, message: "pb.CreateSaleRequest | pb.ScheduleSaleRequest") -> Times:
    times = Times(_time_of(violations, "open_time", message), _time_of(violations, "close_time", message))
    if times.open_time and times.close_time and times.close_time <= times.open_time:
        violations.add("close_time", "must be after open_time")
    return times


def schedule_of(request: pb.ScheduleSaleRequest) -> tuple[str, Times]:
    """The sale and the times asked for. Raises INVALID_ARGUMENT."""
    violations = Violations()
    sale_id = violations.uuid("sale_id", request.sale_id)
    times = _check_times(violations, request)
    _check_actor(violations, request.actor)
    violations.raise_if_any()
    return sale_id, times


def change_of(request: pb.OpenSaleRequest | pb.PauseSaleRequest | pb.CloseSaleRequest) -> tuple[str, str]:
    """The sale that is to change, and who asks. Raises INVALID_ARGUMENT."""
    violations = Violations()
    sale_id = violations.uuid("sale_id", request.sale_id)
    _check_actor(violations, request.actor)
    violations.raise_if_any()
    return sale_id, request.actor


def raise_of(request: pb.RaiseSaleTotalRequest) -> tuple[str, int]:
    """The sale and the total asked for. Raises INVALID_ARGUMENT."""
    violations = Violations()
    sale_id = violations.uuid("sale_id", request.sale_id)
    violations.integer("total", request.total, 1, _TOTAL_MAX)
    _check_actor(violations, request.actor)
    violations.raise_if_any()
    return sale_id, request.total


def eligible_users_of(request: pb.BatchAddEligibleUsersRequest) -> tuple[str, list[str]]:
    """The sale and the users who may buy. Raises INVALID_ARGUMENT, which names the first user that is none."""
    violations = Violations()
    sale_id = violations.uuid("sale_id", request.sale_id)
    count = len(request.user_ids)
    if not 0 < count <= _ELIGIBLE_BATCH_MAX:
        violations.add("user_ids", f"must have 1 to {_ELIGIBLE_BATCH_MAX} items, has {count}")
    for place, user_id in enumerate(request.user_ids):
        if not is_name(user_id):
            violations.name(f"user_ids[{place}]", user_id)
            break
    violations.raise_if_any()
    return sale_id, list(request.user_ids)


def terms_of(request: pb.CreateSaleRequest) -> tuple[SaleTerms, Times]:
    """The terms and times asked for, limits of 0 as they are. Raises INVALID_ARGUMENT that names every wrong field."""
    violations = Violations()
    violations.name("request_id", request.request_id)
    name = request.display_name
    if not (0 < len(name) <= _NAME_LENGTH_MAX and name.isprintable() and name == name.strip()):
        violations.add("display_name", f"must be 1 to {_NAME_LENGTH_MAX} printable characters")
    violations.integer("unit_price.amount_minor", request.unit_price.amount_minor, 1, _PRICE_MINOR_MAX)
    violations.currency("unit_price.currency_code", request.unit_price.currency_code)
    violations.integer("total", request.total, 1, _TOTAL_MAX)
    violations.integer("per_user_limit", request.per_user_limit, 0, _TOTAL_MAX)
    violations.integer("per_purchase_limit", request.per_purchase_limit, 0, _PER_PURCHASE_MAX)
    times = _check_times(violations, request)
    _check_actor(violations, request.actor)
    violations.raise_if_any()
    terms = SaleTerms(
        display_name=name,
        unit_price_minor=request.unit_price.amount_minor,
        currency_code=request.unit_price.currency_code,
        total=request.total,
        per_user_limit=request.per_user_limit,
        per_purchase_limit=request.per_purchase_limit,
        eligible_users_only=request.eligible_users_only,
        overtaking_allowed=request.overtaking_allowed,
    )
    return terms, times


def sale_message(sale: Sale) -> pb.Sale:
    """A sale."""
    terms = sale.terms
    return pb.Sale(
        sale_id=sale.sale_id,
        display_name=terms.display_name,
        unit_price=price_message(terms),
        total=terms.total,
        per_user_limit=terms.per_user_limit,
        per_purchase_limit=terms.per_purchase_limit,
        state=_state_value(sale.state),
        create_time=timestamp(sale.create_time),
        open_time=timestamp(sale.times.open_time),
        close_time=timestamp(sale.times.close_time),
        eligible_users_only=terms.eligible_users_only,
        overtaking_allowed=terms.overtaking_allowed,
        state_time=timestamp(sale.state_time),
        state_actor=sale.state_actor,
    )


def _state_value(state: SaleState | None) -> "pb.SaleState.ValueType":
    return pb.SaleState.Value(f"SALE_STATE_{state or 'UNSPECIFIED'}")


def change_message(change: SaleChange) -> pb.SaleChange:
    """Something that was done with a sale."""
    return pb.SaleChange(
        change_time=timestamp(change.change_time),
        actor=change.actor,
        from_state=_state_value(change.from_state),
        to_state=_state_value(change.to_state),
        total=change.total,
    )


def changes_listing(sale_id: str) -> list[str]:
    """What the list of a sale's changes is called in its page tokens."""
    return ["changes", sale_id]


def change_after(token: str, listing: list[str]) -> int:
    """The id of the change after which a page begins; 0 for the first page. Raises INVALID_ARGUMENT."""
    last = page_token.decode(token, listing, 1)
    if last is None:
        return 0
    if not (last[0].isascii() and last[0].isdigit() and int(last[0]) <= _CHANGE_ID_MAX):
        raise page_token.wrong_token()
    return int(last[0])
