"""Between the contract's messages and the domain: reading and checking requests, writing answers. No I/O."""

import uuid
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh import page_token
from mesh.errors import DomainError, invalid_argument, jittered_ms, suggested_retry_ms
from mesh.identity import purchase_id
from mesh.pages import Listed
from mesh.timestamps import timestamp
from mesh.validation import Violations, canonical_uuid, is_name
from purchase_svc.purchase import (
    NO_PLACE,
    QUANTITY_MAX,
    REQUESTS_MAX,
    Outcome,
    Place,
    Purchase,
    PurchaseState,
    Wish,
)
from purchase_svc.purchase_book import PurchaseFilter, SaleSummary

_STATES: dict[PurchaseState, pb.PurchaseState.ValueType] = {
    state: pb.PurchaseState.Value(f"PURCHASE_STATE_{state}") for state in PurchaseState
}
# In a sale nearly every request names the same one.
_remembered_uuid = lru_cache(maxsize=1024)(canonical_uuid)
_UUID_LENGTH = 36

_STATES_BY_NUMBER = {number: state for state, number in _STATES.items()}
_OF_A_SALE = frozenset(
    {
        ErrorReason.ERROR_REASON_SOLD_OUT,
        ErrorReason.ERROR_REASON_SALE_NOT_OPEN,
        ErrorReason.ERROR_REASON_SALE_NOT_FOUND,
        ErrorReason.ERROR_REASON_NOT_ELIGIBLE,
    }
)


def read_wish(request: pb.CreatePurchaseRequest) -> Wish:
    """Raises INVALID_ARGUMENT that names every wrong field."""
    wish = _wish(request)
    if wish is not None:
        return wish
    wrong = Violations()
    wrong.name("request_id", request.request_id)
    if not request.request_id.isascii():
        wrong.add("request_id", "must be ASCII")
    wrong.name("user_id", request.user_id)
    wrong.uuid("sale_id", request.sale_id)
    wrong.integer("quantity", request.quantity, 1, QUANTITY_MAX)
    wrong.raise_if_any()
    raise AssertionError("the two checks differ")


def _wish(request: pb.CreatePurchaseRequest) -> Wish | None:
    """The wish, or None for a malformed request; what is wrong about it is found out only if somebody is to be told."""
    request_id, user_id, quantity = request.request_id, request.user_id, request.quantity
    # Whatever is asked about is kept, so nothing long is: a thousand texts of a megabyte would stay.
    sale_id = _remembered_uuid(request.sale_id) if len(request.sale_id) == _UUID_LENGTH else None
    if (
        sale_id is None
        or not is_name(request_id)
        or not request_id.isascii()
        or not is_name(user_id)
        or not 1 <= quantity <= QUANTITY_MAX
    ):
        return None
    return Wish(purchase_id(user_id, sale_id, request_id), user_id, sale_id, request_id, quantity, request.waitlist)


def read_wishes(request: pb.BatchCreatePurchasesRequest) -> list[Wish | None]:
    """One wish per request, None for a malformed one. Raises INVALID_ARGUMENT unless there are 1 to 1,000 requests."""
    if not 1 <= len(request.requests) <= REQUESTS_MAX:
        raise invalid_argument(("requests", f"must be 1 to {REQUESTS_MAX} items, are {len(request.requests)}"))
    return [_wish(each) for each in request.requests]


def read_purchase_id(text: str, user_id: str) -> uuid.UUID:
    """The id of a request that names a purchase, perhaps only if it is ``user_id``'s. Raises INVALID_ARGUMENT."""
    wrong = Violations()
    canonical = wrong.uuid("purchase_id", text)
    if user_id:
        wrong.name("user_id", user_id)
    wrong.raise_if_any()
    return uuid.UUID(canonical)


def read_sale_id(text: str) -> uuid.UUID:
    """The id of a request that names a sale. Raises INVALID_ARGUMENT."""
    wrong = Violations()
    canonical = wrong.uuid("sale_id", text)
    wrong.raise_if_any()
    return uuid.UUID(canonical)


def read_filter(request: pb.ListPurchasesRequest) -> tuple[PurchaseFilter, uuid.UUID | None, int]:
    """What to list, the id after which to begin, and how many. Raises INVALID_ARGUMENT."""
    wrong = Violations()
    sale_id = wrong.uuid("sale_id", request.sale_id) if request.sale_id else None
    user_id = wrong.name("user_id", request.user_id) if request.user_id else None
    if request.state and request.state not in _STATES_BY_NUMBER:
        wrong.add("state", f"{request.state} is no state")
    wrong.raise_if_any()
    wanted = PurchaseFilter(
        sale_id=uuid.UUID(sale_id) if sale_id else None,
        user_id=user_id,
        state=_STATES_BY_NUMBER.get(request.state),
    )
    after = page_token.decode_id(request.page_token, _listing(wanted))
    return wanted, uuid.UUID(after) if after else None, page_token.page_size(request.page_size)


def _listing(wanted: PurchaseFilter) -> list[str]:
    return ["purchases", str(wanted.sale_id or ""), wanted.user_id or "", wanted.state or ""]


def write_page(purchases: Sequence[Purchase], limit: int, wanted: PurchaseFilter) -> pb.ListPurchasesResponse:
    """A page of up to ``limit`` of ``purchases``, which are one more than that if there are further ones."""
    listing = _listing(wanted)
    listed = Listed(purchases, limit, lambda last: page_token.encode(listing, [str(last.purchase_id)]))
    messages, token = listed.page(write_purchase)
    return pb.ListPurchasesResponse(purchases=messages, next_page_token=token)


def write_purchase(purchase: Purchase, place: Place = NO_PLACE) -> pb.Purchase:
    """The purchase as the contract shows it, with its place in line."""
    return pb.Purchase(
        purchase_id=str(purchase.purchase_id),
        user_id=purchase.user_id,
        sale_id=str(purchase.sale_id),
        request_id=purchase.request_id,
        quantity=purchase.quantity,
        amount=Money(amount_minor=purchase.amount_minor, currency_code=purchase.currency_code),
        state=_STATES[purchase.state],
        reason=write_reason(purchase.reason),
        # Those of a refund under way may be somebody else's already.
        share_numbers=purchase.share_numbers if purchase.state is PurchaseState.CONFIRMED else (),
        create_time=timestamp(purchase.create_time),
        update_time=timestamp(purchase.update_time),
        waitlist_position=place.position,
        estimated_wait_s=place.estimated_wait_s,
    )


def write_outcome(outcome: Outcome | None, place: Place = NO_PLACE) -> pb.CreatePurchaseOutcome:
    """An item's answer, with its place in line; None: the item was malformed."""
    if outcome is None:
        return pb.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_INVALID_ARGUMENT)
    if outcome.purchase is not None:
        assert not outcome.reason
        answer = pb.CreatePurchaseOutcome(purchase_id=str(outcome.purchase_id), state=_STATES[outcome.purchase.state])
        if place is not NO_PLACE:
            answer.waitlist_position, answer.estimated_wait_s = place
        return answer
    assert outcome.reason
    return pb.CreatePurchaseOutcome(
        reason=write_reason(outcome.reason),
        purchase_id=str(outcome.purchase_id),
        retry_after_ms=jittered_ms(suggested_retry_ms(outcome.reason)),
    )


def refusal(wish: Wish, reason: int) -> DomainError:
    """The error by which a single buyer is told why there is no purchase."""
    return DomainError(reason, metadata={"sale_id": wish.sale_id} if reason in _OF_A_SALE else None)


def write_summary(summary: SaleSummary, queued_messages: int, dead_letters: int) -> pb.SummarizeSaleResponse:
    """Counts of a sale with what waits in the queue."""
    response = pb.SummarizeSaleResponse(queued_messages=queued_messages, dead_letters=dead_letters)
    for count in summary.counts:
        response.counts.add(
            state=write_state(count.state),
            reason=write_reason(count.reason),
            purchases=count.purchases,
            units=count.units,
        )
    if summary.first_claim_time is not None:
        response.first_claim_time.CopyFrom(timestamp(summary.first_claim_time))
    if summary.last_final_time is not None:
        response.last_final_time.CopyFrom(timestamp(summary.last_final_time))
    if summary.oldest_unsettled_time is not None:
        response.oldest_unsettled_time.CopyFrom(timestamp(summary.oldest_unsettled_time))
    return response


def write_state(state: PurchaseState) -> pb.PurchaseState.ValueType:
    """The state as the contract names it."""
    return _STATES[state]


def write_reason(number: int) -> "ErrorReason.ValueType":
    """The number of an ErrorReason as messages take it."""
    # A cast, because ErrorReason looks every attribute up by name, which costs more than all else about an outcome.
    return cast("ErrorReason.ValueType", number)
