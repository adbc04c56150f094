"""Statements as the contract has them. No I/O."""

import uuid

from flashsale.common.v1.money_pb2 import Money
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh import page_token
from mesh.pages import Listed
from mesh.timestamps import timestamp
from purchase_svc import words
from purchase_svc.history_book import NonWin
from purchase_svc.messages import read_sale_id, write_reason, write_state
from purchase_svc.purchase import PurchaseState
from purchase_svc.statements import Statement

_S = PurchaseState


def read_statement_request(request: pb.GetSaleStatementRequest) -> tuple[uuid.UUID, uuid.UUID | None, int]:
    """The sale, the id after which to begin, and how many of those who won nothing. Raises INVALID_ARGUMENT."""
    sale_id = read_sale_id(request.sale_id)
    after = page_token.decode_id(request.page_token, _listing(sale_id))
    return sale_id, uuid.UUID(after) if after else None, page_token.page_size(request.page_size)


def _listing(sale_id: uuid.UUID) -> list[str]:
    return ["non-wins", str(sale_id)]


def write_statement(statement: Statement, sale_id: uuid.UUID, limit: int) -> pb.GetSaleStatementResponse:
    """The statement with up to ``limit`` of those who won nothing."""
    currency = statement.sale.unit_price.currency_code
    captured = statement.amount_minor(_S.CONFIRMED, _S.REFUNDING, _S.REFUNDED)
    response = pb.GetSaleStatementResponse(
        sale_id=str(sale_id),
        final=statement.final,
        total=statement.sale.total,
        sold_units=statement.units(_S.CONFIRMED, _S.REFUNDING),
        sold_purchases=statement.purchases(_S.CONFIRMED, _S.REFUNDING),
        captured=Money(amount_minor=captured, currency_code=currency),
        refunded=Money(amount_minor=statement.amount_minor(_S.REFUNDED), currency_code=currency),
        unfinished_purchases=statement.unfinished,
    )
    for count in statement.non_win_counts:
        response.non_win_counts.add(
            state=write_state(count.state),
            reason=write_reason(count.reason),
            words=words.of_non_win(count.state, count.reason),
            purchases=count.purchases,
            units=count.units,
        )
    listing = _listing(sale_id)
    listed = Listed(statement.non_wins, limit, lambda last: page_token.encode(listing, [str(last.purchase_id)]))
    non_wins, response.next_page_token = listed.page(_write_non_win)
    response.non_wins.extend(non_wins)
    return response


def _write_non_win(each: NonWin) -> pb.NonWin:
    return pb.NonWin(
        purchase_id=str(each.purchase_id),
        user_id=each.user_id,
        quantity=each.quantity,
        state=write_state(each.state),
        reason=write_reason(each.reason),
        end_time=timestamp(each.end_time),
    )
