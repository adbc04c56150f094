"""Between the contract's messages about lines and the domain."""

from collections.abc import Sequence

from flashsale.inventory.v1 import inventory_service_pb2 as pb

from inventory_svc.waitlist import Place, WaitlistEntry, WaitlistState
from mesh import page_token
from mesh.errors import invalid_argument
from mesh.timestamps import timestamp

_TICKET_MAX = 2**63 - 1


def state_of_filter(state: int) -> WaitlistState | None:
    """The state a list is filtered by, or None for any. Raises INVALID_ARGUMENT for a number that is no state."""
    if state == pb.WaitlistState.WAITLIST_STATE_UNSPECIFIED:
        return None
    if state not in pb.WaitlistState.values():
        raise invalid_argument(("state", f"{state} is no state"))
    return WaitlistState(pb.WaitlistState.Name(state).removeprefix("WAITLIST_STATE_"))  # type: ignore[arg-type]


def ticket_of(token: str, listing: Sequence[str]) -> int:
    """The ticket after which a page begins; 0 for the first. Raises INVALID_ARGUMENT."""
    last = page_token.decode(token, listing, 1)
    if last is None:
        return 0
    if not (last[0].isascii() and last[0].isdigit()) or len(last[0]) > len(str(_TICKET_MAX)):
        raise page_token.wrong_token()
    return min(int(last[0]), _TICKET_MAX)


def position_message(reservation_id: str, place: Place | None) -> pb.WaitlistPosition:
    """A place in line; 0 for who has none."""
    return pb.WaitlistPosition(
        reservation_id=reservation_id,
        position=place.position if place else 0,
        units_ahead=place.units_ahead if place else 0,
    )


def entry_message(entry: WaitlistEntry) -> pb.WaitlistEntry:
    """A request that joined a line."""
    return pb.WaitlistEntry(
        reservation_id=entry.reservation_id,
        sale_id=entry.sale_id,
        user_id=entry.user_id,
        request_id=entry.request_id,
        quantity=entry.quantity,
        ticket=entry.ticket,
        state=pb.WaitlistState.Value(f"WAITLIST_STATE_{entry.state}"),
        join_time=timestamp(entry.join_time),
        end_time=timestamp(entry.end_time) if entry.end_time else None,
        decision_number=entry.decision_number,
    )
