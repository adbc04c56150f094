"""Receipts as the contract has them. No I/O."""

from flashsale.balance.v1 import balance_service_pb2 as balance_pb
from flashsale.inventory.v1 import inventory_service_pb2 as inventory_pb
from flashsale.purchase.v1 import purchase_service_pb2 as pb

from mesh.timestamps import timestamp
from purchase_svc import words
from purchase_svc.messages import write_purchase, write_state
from purchase_svc.purchase import Place
from purchase_svc.receipts import Receipt


def write_receipt(receipt: Receipt, place: Place) -> pb.GetReceiptResponse:
    """Everything about one purchase."""
    purchase = receipt.history.purchase
    return pb.GetReceiptResponse(
        purchase=write_purchase(purchase, place),
        reservation=_reservation(receipt.reservation) if receipt.reservation else None,
        hold=_hold(receipt.hold) if receipt.hold else None,
        steps=[
            pb.ReceiptStep(state=write_state(step.state), time=timestamp(step.time), words=words.of_step(step.state))
            for step in receipt.history.steps()
        ],
        words=words.of_state(purchase.state, purchase.reason),
    )


def _reservation(reservation: inventory_pb.Reservation) -> pb.ReceiptReservation:
    return pb.ReceiptReservation(
        state=inventory_pb.ReservationState.Name(reservation.state).removeprefix("RESERVATION_STATE_"),
        quantity=reservation.quantity,
        create_time=reservation.create_time,
        update_time=reservation.update_time if reservation.HasField("update_time") else None,
    )


def _hold(hold: balance_pb.Hold) -> pb.ReceiptHold:
    return pb.ReceiptHold(
        state=balance_pb.HoldState.Name(hold.state).removeprefix("HOLD_STATE_"),
        amount=hold.amount,
        create_time=hold.create_time,
        end_time=hold.end_time if hold.HasField("end_time") else None,
    )
