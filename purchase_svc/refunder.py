"""Refunds purchases whose buyers have asked for it: the money first, then the shares.

In this order, because a buyer may own shares that have been paid back for a moment, but never have paid for shares that
are somebody else's. Both steps are remembered by their owners and repeatable: whatever breaks off is begun again, by
whichever process comes to it, and books nothing twice.
"""

import uuid
from collections.abc import Sequence

from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import failpoints, tracing
from mesh.errors import DomainError, reason_name
from mesh.logs import get_logger
from purchase_svc.refund_book import RefundBook
from purchase_svc.settlement_services import SettlementServices

log = get_logger(__name__)

#: Refunds in one round.
_BATCH_MAX = 500


class Refunder:
    """Drives REFUNDING to REFUNDED, up to 500 purchases a round. Any number of them may run at once."""

    def __init__(self, book: RefundBook, services: SettlementServices) -> None:
        self._book = book
        self._services = services

    async def refund(self) -> bool:
        """One round; whether anything was refunded. Raises UNAVAILABLE when nothing could be."""
        ids = await self._book.list_pending(_BATCH_MAX)
        if not ids:
            return False
        with tracing.spans("refund", ids):
            return await self._refund(ids)

    async def _refund(self, ids: Sequence[uuid.UUID]) -> bool:
        money = await self._services.reverse_captures(ids)
        failpoints.hit("refunder.reversed")
        paid_back = [key for key, answer in money.items() if answer.done]
        shares = await self._services.release_reservations(paid_back, revoke_sold=True)
        failpoints.hit("refunder.released")
        done = [key for key, answer in shares.items() if answer.nothing_reserved]
        if done:
            log.info("refunded", purchases=await self._book.finish(done))
        left = set(ids).difference(done)
        for key in left:
            answer = shares.get(key) or money[key]
            if answer.known:
                log.error("cannot be refunded", purchase_id=str(key), reason=reason_name(answer.reason))
        if left:
            await self._book.postpone(list(left))
        if not done:
            raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "nothing could be refunded")
        return True
