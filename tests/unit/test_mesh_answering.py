"""Which answers are refused when others have not been taken, and that each is counted until it has."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.answering import AnswerBounds, AnswerLayer
from mesh.errors import DomainError
from mesh.metrics import Metrics

SHED = Metrics().counts("shed", "Shed", ("grpc_method", "reason"))


class Call:
    """A call on a connection, over when the test says so."""

    def __init__(self, connection: str) -> None:
        self._connection = connection
        self._callbacks: list[Callable[[Any], None]] = []

    def peer(self) -> str:
        return self._connection

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


def answering(**bounds: int) -> tuple[AnswerLayer, Callable[[int, str], Any]]:
    """A layer, and what asks it for an answer of so many bytes on a connection."""
    layer = AnswerLayer(AnswerBounds(**bounds), SHED)

    async def answer(size: int, _: Any) -> int:
        return size

    handler: Any = grpc.unary_unary_rpc_method_handler(answer, None, bytes)
    wrapped: Any = layer.wrap(handler, "/s/M").unary_unary

    async def ask(size: int, connection: str) -> Call:
        call = Call(connection)
        assert await wrapped(size, call) == bytes(size)
        return call

    return layer, ask


async def refused(asked: Any) -> None:
    with pytest.raises(DomainError) as error:
        await asked
    assert error.value.reason == ErrorReason.ERROR_REASON_OVERLOADED


async def test_a_connection_has_a_budget_that_is_given_back() -> None:
    layer, ask = answering(connection_bytes_max=100, small_bytes=10)
    calls = [await ask(40, "a"), await ask(60, "a")]
    await refused(ask(11, "a"))
    await ask(10, "a")
    await ask(100, "b")
    assert layer.bytes_unread == 200
    for call in calls:
        call.end()
    assert layer.bytes_unread == 100
    await ask(40, "a")


async def test_together_they_have_one_from_which_nobody_is_kept_away() -> None:
    layer, ask = answering(connection_bytes_max=100, bytes_max=150, small_bytes=10)
    await ask(90, "a")
    await ask(60, "b")
    await refused(ask(11, "b"))
    # Larger than any budget, but the only one of its connection.
    own = await ask(200, "c")
    await refused(ask(11, "c"))
    own.end()
    assert layer.bytes_unread == 150
    await ask(11, "c")
