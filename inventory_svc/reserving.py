"""Reserving: the gate takes the units, then one INSERT makes them durable, and only then is anybody told."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from inventory_svc.eligibility import Eligibility
from inventory_svc.grant_proofs import GrantProofs
from inventory_svc.reservation_book import ReservationBook
from inventory_svc.sale import SaleTerms, Wish
from inventory_svc.sale_book import SaleBook
from inventory_svc.stock_gate import SCRIPT_ITEMS_MAX, StockGate
from mesh import failpoints
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Longest that the INSERT of a call may take, seconds. Shorter than the age at which the reaper takes a grant for lost.
INSERT_S_MAX = 8.0
#: Sales of one call that are worked on at once.
_SALES_AT_ONCE = 4


@dataclass(frozen=True)
class Reserved:
    """The reason for each wish, 0 when its units are reserved durably, and the terms of the sales that were so."""

    reasons: list[int]
    terms: dict[str, SaleTerms]


class Reserving:
    """Decides wishes of any sales. ``changed`` is told a sale and its available units; ``stale`` a gate to look at."""

    def __init__(
        self,
        gate: StockGate,
        sales: SaleBook,
        book: ReservationBook,
        proofs: GrantProofs,
        eligibility: Eligibility,
        *,
        changed: Callable[[str, int], None],
        stale: Callable[[str], None],
    ) -> None:
        self._gate = gate
        self._sales = sales
        self._book = book
        self._proofs = proofs
        self._eligibility = eligibility
        self._changed = changed
        self._stale = stale

    async def reserve(self, wishes: Sequence[Wish]) -> Reserved:
        """Decides each wish by itself. Never raises for a server that is away: its wishes get UNAVAILABLE."""
        reasons = [int(ErrorReason.ERROR_REASON_UNAVAILABLE)] * len(wishes)
        terms: dict[str, SaleTerms] = {}
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
                        found = await self._reserve_if_eligible(sale_id, of_sale)
                    else:
                        found = await self._reserve_of_sale(sale_id, of_sale)
                except DomainError as error:
                    found = [error.reason] * len(places)
            for place, reason in zip(places, found, strict=True):
                reasons[place] = reason
            if ErrorReason.ERROR_REASON_UNSPECIFIED in found:
                terms[sale_id] = known

        if len(by_sale) == 1:
            await one_sale(*next(iter(by_sale.items())))
        else:
            await asyncio.gather(*(one_sale(*pair) for pair in by_sale.items()))
        return Reserved(reasons, terms)

    async def _reserve_if_eligible(self, sale_id: str, wishes: Sequence[Wish]) -> list[int]:
        """As ``_reserve_of_sale``; the wishes of users who may not buy never get as far as the stock."""
        eligible = await self._eligibility.among(sale_id, {wish.user_id for wish in wishes})
        allowed = [wish for wish in wishes if wish.user_id in eligible]
        reasons = iter(await self._reserve_of_sale(sale_id, allowed))
        refused = int(ErrorReason.ERROR_REASON_NOT_ELIGIBLE)
        return [next(reasons) if wish.user_id in eligible else refused for wish in wishes]

    async def _reserve_of_sale(self, sale_id: str, wishes: Sequence[Wish]) -> list[int]:
        reasons: list[int] = []
        granted: defaultdict[int, dict[str, Wish]] = defaultdict(dict)
        epochs: list[int] = []
        for first in range(0, len(wishes), SCRIPT_ITEMS_MAX):
            part = wishes[first : first + SCRIPT_ITEMS_MAX]
            try:
                answer = await self._gate.reserve(sale_id, part)
            except DomainError as error:
                if error.reason == ErrorReason.ERROR_REASON_STOCK_RECALIBRATING:
                    self._stale(sale_id)
                reasons += [error.reason] * (len(wishes) - first)
                epochs += [0] * (len(wishes) - first)
                break
            failpoints.hit("inventory.granted")
            self._changed(sale_id, answer.available)
            reasons += answer.reasons
            epochs += [answer.epoch] * len(part)
            for wish, reason in zip(part, answer.reasons, strict=True):
                if reason == ErrorReason.ERROR_REASON_UNSPECIFIED:
                    granted[answer.epoch][wish.reservation_id] = wish
        # Also grants of earlier calls: theirs may have died before its INSERT.
        decided = {epoch: await self._make_durable(sale_id, epoch, grants) for epoch, grants in granted.items()}
        return [
            decided[epoch][wish.reservation_id] if reason == ErrorReason.ERROR_REASON_UNSPECIFIED else reason
            for wish, reason, epoch in zip(wishes, reasons, epochs, strict=True)
        ]

    async def _make_durable(self, sale_id: str, epoch: int, grants: dict[str, Wish]) -> dict[str, int]:
        """The reason for each granted id once its row is committed. A failure gives nothing back: an INSERT of the
        same grant may have been committed or be under way, so that is left to a repetition or to the reaper."""
        try:
            async with asyncio.timeout(INSERT_S_MAX):
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

    async def _give_back(self, sale_id: str, epoch: int, spent: Sequence[str]) -> None:
        """Frees units that the gate took for ids whose committed rows say that they can never have them."""
        try:
            for first in range(0, len(spent), SCRIPT_ITEMS_MAX):
                part = spent[first : first + SCRIPT_ITEMS_MAX]
                self._changed(sale_id, await self._gate.give_back(sale_id, epoch, part))
        except DomainError as error:
            log.warning("spent grants are left to the reaper", sale_id=sale_id, reason=error.reason_name)
