"""The PurchaseService's calls for operators: statements, dead letters and parked purchases."""

import uuid
from collections.abc import Sequence
from typing import Any

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc

from mesh import page_token
from mesh.channels import timeout_s
from mesh.errors import invalid_argument
from mesh.timestamps import timestamp
from mesh.validation import canonical_uuid
from purchase_svc.dead_letter import DeadLetter
from purchase_svc.messages import write_reason
from purchase_svc.operator_desk import OperatorDesk
from purchase_svc.statement_messages import read_statement_request, write_statement
from purchase_svc.statements import TIMEOUT_S as STATEMENT_TIMEOUT_S
from purchase_svc.statements import Statements

#: Letters of one call, and purchase ids told of one letter.
_LETTERS_DEFAULT, _LETTERS_MAX, _LETTER_IDS_MAX = 20, 100, 250
#: Parked purchases of one call.
_PARKED_MAX = 250


class OperatorCalls(pb_grpc.PurchaseServiceServicer):
    """Errors are raised as DomainError."""

    def __init__(self, statements: Statements, desk: OperatorDesk) -> None:
        self._statements = statements
        self._desk = desk

    async def GetSaleStatement(self, request: pb.GetSaleStatementRequest, context: Any) -> pb.GetSaleStatementResponse:
        """See the contract."""
        sale_id, after, limit = read_statement_request(request)
        statement = await self._statements.of_sale(sale_id, after, limit + 1, timeout_s(context, STATEMENT_TIMEOUT_S))
        return write_statement(statement, sale_id, limit)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Any) -> pb.ListDeadLettersResponse:
        """See the contract."""
        most = page_token.page_size(request.page_size, default=_LETTERS_DEFAULT, most=_LETTERS_MAX)
        letters, count = await self._desk.dead_letters(most)
        return pb.ListDeadLettersResponse(letters=map(_write_letter, letters), count=count)

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Any
    ) -> pb.ReplayDeadLettersResponse:
        """See the contract."""
        if request.letters_max < 0:
            raise invalid_argument(("letters_max", "must be 0 or more"))
        replayed = await self._desk.replay_dead_letters(min(request.letters_max or _LETTERS_DEFAULT, _LETTERS_MAX))
        return pb.ReplayDeadLettersResponse(
            purchases=replayed.purchases, letters_left=len(replayed.why_left), why=replayed.why_left
        )

    async def BatchReplayParkedPurchases(
        self, request: pb.BatchReplayParkedPurchasesRequest, context: Any
    ) -> pb.BatchReplayParkedPurchasesResponse:
        """See the contract."""
        asked: Sequence[str] = request.purchase_ids
        if not 1 <= len(asked) <= _PARKED_MAX:
            raise invalid_argument(("purchase_ids", f"must be 1 to {_PARKED_MAX} items, are {len(asked)}"))
        ids = [uuid.UUID(canonical) if (canonical := canonical_uuid(text)) else None for text in asked]
        good = list(dict.fromkeys(each for each in ids if each is not None))
        reasons = await self._desk.replay_parked(good) if good else {}
        return pb.BatchReplayParkedPurchasesResponse(
            outcomes=[
                pb.ReplayParkedOutcome(
                    purchase_id=text,
                    reason=write_reason(ErrorReason.ERROR_REASON_INVALID_ARGUMENT if each is None else reasons[each]),
                )
                for text, each in zip(asked, ids, strict=True)
            ]
        )


def _write_letter(letter: DeadLetter) -> pb.DeadLetter:
    return pb.DeadLetter(
        first_seen_time=timestamp(letter.first_seen) if letter.first_seen else None,
        partition=-1 if letter.partition is None else letter.partition,
        body_bytes=len(letter.body),
        reason=letter.reason,
        purchase_ids=map(str, letter.purchase_ids[:_LETTER_IDS_MAX]),
    )
