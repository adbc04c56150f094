"""Reserving: the gate takes the units, then one INSERT makes them durable, and only then is anybody told. Who finds too
few joins the line in the same way."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.eligibility import Eligibility
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale import SaleTerms, Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import SCRIPT_ITEMS_MAX, StockGate
from inventory_svc.waitlist_book import Joined, WaitlistBook
from mesh import failpoints, tracing
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Longest that the INSERT of a call may take, seconds. Shorter than the age at which the reaper takes a grant for lost.
INSERT_S_MAX = 8.0
#: Sales of one call that are worked on at once.
_SALES_AT_ONCE = 4
_REDIS = {"db.system.name": "redis", "db.operation.name": "EVALSHA"}


@dataclass(frozen=True)
class Reserved:
    """The reason for each wish, 0 when its units are reserved durably or it waits in line, and the terms of the sales
    of which any were so. ``positions`` has the place in line of each wish that waits, by its place among the wishes."""

    reasons: list[int]
    terms: dict[str, SaleTerms]
    positions: dict[int, int] = field(default_factory=dict)


@dataclass
class _Decisions:
    """What has been decided of the wishes of one sale, in their order, and under which epochs units were granted and
    places in line given."""

    reasons: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    granted: defaultdict[int, dict[str, Wish]] = field(default_factory=lambda: defaultdict(dict))
    in_line: defaultdict[int, dict[str, Wish]] = field(default_factory=lambda: defaultdict(dict))


def _ids(wishes: Sequence[Wish]) -> Iterator[str]:
    return (wish.reservation_id for wish in wishes)


class Reserving:
    """Decides wishes of any sales. ``changed`` is told a sale, its available units and how many wait; ``joined`` a sale
    whose line somebody has joined; ``stale`` a gate to look at."""

    def __init__(
        self,
        gate: StockGate,
        sales: SaleBook,
        book: ReservationBook,
        waitlist: WaitlistBook,
        proofs: GrantProofs,
        eligibility: Eligibility,
        *,
        changed: Callable[[str, int, int], None],
        joined: Callable[[str], None],
        stale: Callable[[str], None],
    ) -> None:
        self._gate = gate
        self._sales = sales
        self._book = book
        self._waitlist = waitlist
        self._proofs = proofs
        self._eligibility = eligibility
        self._changed = changed
        self._joined = joined
        self._stale = stale

    async def reserve(self, wishes: Sequence[Wish]) -> Reserved:
        """Decides each wish by itself. Never raises for a server that is away: its wishes get UNAVAILABLE."""
        reasons = [int(ErrorReason.ERROR_REASON_UNAVAILABLE)] * len(wishes)
        terms: dict[str, SaleTerms] = {}
        positions: dict[int, int] = {}
        by_sale: defaultdict[str, list[int]] = defaultdict(list)
        for place, wish in enumerate(wishes):
            by_sale[wish.sale_id].append(place)
        at_once = asyncio.Semaphore(_SALES_AT_ONCE)

        async def one_sale(sale_id: str, places: Sequence[int]) -> None:
            async with at_once:
                try:
                    known = await self._sales.terms(sale_id)
                    of_sale = [wishes[place] for place in places]
                    if known.eligible_users_only:
                        found, in_line = await self._reserve_if_eligible(sale_id, of_sale)
                    else:
                        found, in_line = await self._reserve_of_sale(sale_id, of_sale)
                except DomainError as error:
                    found, in_line = [error.reason] * len(places), {}
            for place, reason in zip(places, found, strict=True):
                reasons[place] = reason
            if in_line:
                positions.update((place, in_line.get(wishes[place].reservation_id, 0)) for place in places)
            if ErrorReason.ERROR_REASON_UNSPECIFIED in found:
                terms[sale_id] = known

        if len(by_sale) == 1:
            await one_sale(*next(iter(by_sale.items())))
        else:
            await asyncio.gather(*(one_sale(*pair) for pair in by_sale.items()))
        return Reserved(reasons, terms, positions)

    async def _reserve_if_eligible(self, sale_id: str, wishes: Sequence[Wish]) -> tuple[list[int], dict[str, int]]:
        """As ``_reserve_of_sale``; the wishes of users who may not buy never get as far as the stock."""
        eligible = await self._eligibility.among(sale_id, {wish.user_id for wish in wishes})
        allowed = [wish for wish in wishes if wish.user_id in eligible]
        found, positions = await self._reserve_of_sale(sale_id, allowed)
        reasons = iter(found)
        refused = int(ErrorReason.ERROR_REASON_NOT_ELIGIBLE)
        return [next(reasons) if wish.user_id in eligible else refused for wish in wishes], positions

    async def _reserve_of_sale(self, sale_id: str, wishes: Sequence[Wish]) -> tuple[list[int], dict[str, int]]:
        """The reason for each wish, and the places of the ids that wait in line."""
        decisions = await self._ask_gate(sale_id, wishes)
        # Also grants of earlier calls: theirs may have died before its INSERT.
        decided = {
            epoch: await self._make_durable(sale_id, epoch, grants) for epoch, grants in decisions.granted.items()
        }
        positions: dict[str, int] = {}
        for epoch, joining in decisions.in_line.items():
            joined = await self._join(sale_id, epoch, joining)
            decided.setdefault(epoch, {}).update((key, one.reason) for key, one in joined.items())
            positions |= {key: one.position for key, one in joined.items() if one.position}
        reasons = []
        for wish, reason, epoch in zip(wishes, decisions.reasons, decisions.epochs, strict=True):
            if wish.reservation_id in positions:
                # An id that occurs twice is answered twice alike, also when only one of the two wishes would wait.
                reasons.append(int(ErrorReason.ERROR_REASON_UNSPECIFIED))
            elif reason == ErrorReason.ERROR_REASON_UNSPECIFIED:
                reasons.append(decided[epoch][wish.reservation_id])
            else:
                reasons.append(reason)
        return reasons, positions

    async def _ask_gate(self, sale_id: str, wishes: Sequence[Wish]) -> _Decisions:
        decisions = _Decisions()
        for first in range(0, len(wishes), SCRIPT_ITEMS_MAX):
            part = wishes[first : first + SCRIPT_ITEMS_MAX]
            try:
                with tracing.spans("Redis reserve", _ids(part), tracing.Kind.CLIENT, _REDIS):
                    answer = await self._gate.reserve(sale_id, part)
            except DomainError as error:
                if error.reason == ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                    self._stale(sale_id)
                decisions.reasons += [error.reason] * (len(wishes) - first)
                decisions.epochs += [0] * (len(wishes) - first)
                break
            failpoints.hit("inventory.granted")
            self._changed(sale_id, *answer.level)
            decisions.reasons += answer.reasons
            decisions.epochs += [answer.epoch] * len(part)
            granted, in_line = decisions.granted[answer.epoch], decisions.in_line
            for place, (wish, reason) in enumerate(zip(part, answer.reasons, strict=True)):
                if reason == ErrorReason.ERROR_REASON_UNSPECIFIED:
                    if place in answer.in_line:
                        in_line[answer.epoch][wish.reservation_id] = wish
                    else:
                        granted[wish.reservation_id] = wish
        return decisions

    async def _make_durable(self, sale_id: str, epoch: int, grants: dict[str, Wish]) -> dict[str, int]:
        """The reason for each granted id once its row is committed. A failure gives nothing back: an INSERT of the
        same grant may have been committed or be under way, so that is left to a repetition or to the reaper."""
        if not grants:
            return {}
        try:
            async with asyncio.timeout(INSERT_S_MAX):
                with tracing.sql("insert_reservations", grants):
                    reasons = await self._book.insert(sale_id, epoch, list(grants.values()))
        except TimeoutError:
            return dict.fromkeys(grants, int(ErrorReason.ERROR_REASON_UNAVAILABLE))
        except DomainError as error:
            return dict.fromkeys(grants, error.reason)
        if reasons is None:
            self._stale(sale_id)
            return dict.fromkeys(grants, int(ErrorReason.ERROR_REASON_STOCK_RECALIBRATING))
        failpoints.hit("inventory.recorded")
        self._proofs.add(sale_id, epoch, (key for key, reason in reasons.items() if not reason))
        spent = [key for key, reason in reasons.items() if reason]
        if spent:
            await self._give_back(sale_id, epoch, spent)
        return reasons

    async def _join(self, sale_id: str, epoch: int, joining: dict[str, Wish]) -> dict[str, Joined]:
        """What each id that the gate let wait got once its row in line is committed; failures as in _make_durable."""
        try:
            async with asyncio.timeout(INSERT_S_MAX):
                with tracing.sql("join_waitlist", joining):
                    joined = await self._waitlist.join(sale_id, epoch, list(joining.values()))
        except TimeoutError:
            return dict.fromkeys(joining, Joined(ErrorReason.ERROR_REASON_UNAVAILABLE))
        except DomainError as error:
            return dict.fromkeys(joining, Joined(error.reason))
        if joined is None:
            self._stale(sale_id)
            return dict.fromkeys(joining, Joined(ErrorReason.ERROR_REASON_STOCK_RECALIBRATING))
        failpoints.hit("inventory.joined")
        # Units may have come back after the gate had found none and before the promoter could see who waits.
        self._joined(sale_id)
        # Not who has units already: the promoter that gave them is about to prove that.
        self._proofs.add(sale_id, epoch, (key for key, one in joined.items() if one.position), waiting=True)
        spent = [key for key, one in joined.items() if one.reason]
        if spent:
            await self._give_back(sale_id, epoch, spent)
        return joined

    async def _give_back(self, sale_id: str, epoch: int, spent: Sequence[str]) -> None:
        """Frees what the gate took for ids whose committed rows say that they can never have it; except those that a
        move frees, because it may pass their units on."""
        try:
            followed = await self._book.releases_to_follow(sale_id, spent)
            freed = [key for key in spent if key not in followed]
            for first in range(0, len(freed), SCRIPT_ITEMS_MAX):
                part = freed[first : first + SCRIPT_ITEMS_MAX]
                self._changed(sale_id, *await self._gate.give_back(sale_id, epoch, part))
        except DomainError as error:
            log.warning("spent grants are left to the reaper", sale_id=sale_id, reason=error.reason_name)
