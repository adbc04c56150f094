"""Between the contract's messages and the domain: what comes in is checked, what goes out is said in its terms."""

from collections.abc import Sequence
from datetime import datetime

from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc.sale import Reservation, ReservationState, SaleTerms, Stock, Wish
from mesh import page_token
from mesh.errors import invalid_argument
from mesh.timestamps import timestamp
from mesh.validation import Violations, canonical_uuid, is_name

_BATCH_MAX = 1_000


def require_batch(field: str, count: int) -> None:
    """Raises INVALID_ARGUMENT unless a batch has 1 to 1,000 items."""
    if not 0 < count <= _BATCH_MAX:
        raise invalid_argument((field, f"must have 1 to {_BATCH_MAX} items, has {count}"))


def sale_id_of(text: str) -> str:
    """A sale id in canonical form. Raises INVALID_ARGUMENT."""
    violations = Violations()
    sale_id = violations.uuid("sale_id", text)
    violations.raise_if_any()
    return sale_id


#: What the list of all sales is called in its page tokens.
SALES = ("sales",)


def token_after(listing: Sequence[str], create_time: datetime, last_id: str) -> str:
    """The token of the page of a list by creation that follows the row of this time and id."""
    return page_token.encode(listing, [create_time.isoformat(), last_id])


def place_of(token: str, listing: Sequence[str]) -> tuple[datetime, str] | None:
    """The time and id after which a page of a list by creation begins; None for the first page. Raises
    INVALID_ARGUMENT."""
    last = page_token.decode(token, listing, 2)
    if last is None:
        return None
    found = canonical_uuid(last[1])
    try:
        time = datetime.fromisoformat(last[0])
    except ValueError as error:
        raise page_token.wrong_token() from error
    if found is None or time.tzinfo is None:
        raise page_token.wrong_token()
    return time, found


def wish_of_item(item: pb.ReserveItem) -> Wish | None:
    """The wish of an item, or None when it is malformed."""
    reservation_id, sale_id = canonical_uuid(item.reservation_id), canonical_uuid(item.sale_id)
    if reservation_id is None or sale_id is None or item.quantity < 1:
        return None
    user_id, request_id = item.user_id, item.request_id
    if not (is_name(user_id) and is_name(request_id)):
        return None
    return Wish(reservation_id, sale_id, user_id, request_id, item.quantity, item.join_waitlist)


def state_of_filter(state: int) -> ReservationState | None:
    """The state a list is filtered by, or None for any. Raises INVALID_ARGUMENT for a number that is no state."""
    if state == pb.ReservationState.RESERVATION_STATE_UNSPECIFIED:
        return None
    if state not in pb.ReservationState.values() or state == pb.ReservationState.RESERVATION_STATE_WAITING:
        raise invalid_argument(("state", f"{state} is no state"))
    return ReservationState(pb.ReservationState.Name(state).removeprefix("RESERVATION_STATE_"))  # type: ignore[arg-type]


def price_message(terms: SaleTerms) -> Money:
    """The price of one unit."""
    return Money(amount_minor=terms.unit_price_minor, currency_code=terms.currency_code)


def stock_message(stock: Stock) -> pb.Stock:
    """A reading of the stock."""
    return pb.Stock(
        sale_id=stock.sale_id,
        available=stock.available,
        reserved=stock.reserved,
        sold=stock.sold,
        total=stock.total,
        epoch=stock.epoch,
        open=stock.open,
        holder_changes=stock.holder_changes,
        waiting=stock.waiting,
    )


def reservation_message(reservation: Reservation) -> pb.Reservation:
    """A reservation."""
    return pb.Reservation(
        reservation_id=reservation.reservation_id,
        sale_id=reservation.sale_id,
        user_id=reservation.user_id,
        request_id=reservation.request_id,
        quantity=reservation.quantity,
        state=pb.ReservationState.Value(f"RESERVATION_STATE_{reservation.state}"),
        share_numbers=reservation.share_numbers,
        create_time=timestamp(reservation.create_time),
        update_time=timestamp(reservation.update_time),
    )


def canonical_ids(texts: Sequence[str]) -> list[str | None]:
    """Each id in canonical form, or None where it is none."""
    return [canonical_uuid(text) for text in texts]
