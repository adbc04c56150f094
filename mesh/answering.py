"""Giving answers out: how much may wait for a peer that does not take it.

HTTP/2 lets a peer ask for much and take nothing (a window of 0). grpc.aio then keeps each answer, twice, for as long as
the connection lives: measured, 300 calls on one connection held 1.6 GB.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.errors import DomainError
from mesh.interceptors import Handler
from mesh.metrics import Counts


@dataclass(frozen=True)
class AnswerBounds:
    """Bytes of answers that have not been taken yet: of one connection, and together. Answers of at most
    ``small_bytes`` do not count, for their number on a connection is bounded already; nor does the only one of a
    connection, so that nobody is refused for what others do not take."""

    connection_bytes_max: int = 32 * 1024 * 1024
    bytes_max: int = 128 * 1024 * 1024
    small_bytes: int = 4 * 1024


class AnswerLayer:
    """Refuses a unary call with OVERLOADED when too many answers wait to be taken already. It has been done by then,
    but whoever repeats it gets the same answer. ``shed`` counts by method and why."""

    def __init__(self, bounds: AnswerBounds, shed: Counts) -> None:
        self._bounds = bounds
        self._shed = shed
        self._of_connection: dict[str, int] = {}
        #: Bytes of the answers that have not been taken, small ones left out.
        self.bytes_unread = 0

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, if it is unary: answers in bytes."""
        if handler.unary_unary is None:
            return handler
        name = method.removeprefix("/")
        inner, serialize, small_bytes = handler.unary_unary, handler.response_serializer, self._bounds.small_bytes
        assert serialize is not None

        async def unary(request: Any, context: Any) -> bytes:
            octets = serialize(await inner(request, context))
            if len(octets) > small_bytes:
                self._hold(len(octets), context, name)
            return octets

        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, None)

    def _hold(self, size: int, context: Any, name: str) -> None:
        """Counts an answer until it has been taken or its call is over. Raises OVERLOADED."""
        bounds, peer = self._bounds, context.peer()
        held = self._of_connection.get(peer, 0)
        if held and (held + size > bounds.connection_bytes_max or self.bytes_unread + size > bounds.bytes_max):
            self._shed.add((name, "unread"))
            raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED)
        self._of_connection[peer] = held + size
        self.bytes_unread += size

        def taken(_: object) -> None:
            self.bytes_unread -= size
            self._of_connection[peer] -= size
            if not self._of_connection[peer]:
                del self._of_connection[peer]

        context.add_done_callback(taken)
