"""What is done around every call: the one place where errors become gRPC status, and the limits of what is taken on."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from grpc_status import rpc_status

from mesh.errors import DomainError, from_rpc_error, to_status
from mesh.logs import get_logger
from mesh.metrics import Counts

log = get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """How many unary calls a server has under way at once, and the names of methods that are shed last."""

    calls_max: int = 1024
    critical: frozenset[str] = frozenset()


# In quotes: grpc's classes take no type arguments at run time.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

#: Served whatever the load, so that an overloaded process is not taken for a dead one.
_UNLIMITED = ("/grpc.health.v1.", "/grpc.reflection.")


async def abort(context: Any, error: DomainError) -> NoReturn:
    """Ends a call with the status of ``error``; raises grpc.aio.AbortError."""
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("grpc.aio goes on after abort")


def _domain_error(error: Exception, method: str) -> DomainError:
    """What the client is told of ``error``: never its text, unless it was made for clients."""
    if isinstance(error, DomainError):
        return error
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, TimeoutError):
        return DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
    error_id = uuid.uuid4().hex[:12]
    log.error("unexpected error", method=method, error_id=error_id, exc_info=error)
    return DomainError(ErrorReason.ERROR_REASON_INTERNAL, metadata={"error_id": error_id})


class Layer(Protocol):
    """Something that is done around every call of a server."""

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler that takes the place of ``handler``; ``method`` is its full name, with a slash before it."""


class LayersInterceptor(grpc.aio.ServerInterceptor):
    """Puts layers around the handler of each method, the first outermost: once and not at each call, for handlers are
    the same for as long as a server lives. One interceptor for all, because grpc.aio goes through its interceptors at
    each call. ``outermost`` is around health checks and reflection too."""

    def __init__(self, *layers: Layer, outermost: Layer) -> None:
        self._layers = layers
        self._outermost = outermost
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """The handler of one call."""
        method = str(handler_call_details.method)
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if not method.startswith(_UNLIMITED):
            for layer in reversed(self._layers):
                handler = layer.wrap(handler, method)
        handler = self._outermost.wrap(handler, method)
        self._wrapped[method] = handler
        return handler


class ErrorLayer:
    """Turns what a handler raises into google.rpc.Status with ErrorInfo. An unexpected error is logged under an id that
    the client is told; its text and trace stay here."""

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, its errors mapped."""
        if handler.unary_unary is not None:
            inner = handler.unary_unary

            async def unary(request: Any, context: Any) -> Any:
                try:
                    return await inner(request, context)
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:  # noqa: BLE001 (every error becomes a status)
                    await abort(context, _domain_error(error, method))

            return grpc.unary_unary_rpc_method_handler(
                unary,
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream is not None:
            stream = handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    async for response in stream(request, context):  # type: ignore[attr-defined]
                        yield response
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:  # noqa: BLE001 (every error becomes a status)
                    await abort(context, _domain_error(error, method))

            return grpc.unary_stream_rpc_method_handler(
                streaming,
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler


class LimitLayer:
    """Refuses unary calls that there is no room for with OVERLOADED and RetryInfo, and drops those whose deadline has
    passed before they are begun.

    At most ``limits.calls_max`` calls are under way, and those of ``limits.critical`` methods may be as many again:
    what ends something that was begun (captures, releases, cancels) is shed last, for it makes room for the rest.
    Own code because grpc.aio's maximum_concurrent_rpcs counts health checks and sends no RetryInfo.
    """

    def __init__(self, limits: Limits, shed: Counts) -> None:
        self._limits = limits
        self._shed = shed
        #: Unary calls under way, by kind.
        self.under_way = {"plain": 0, "critical": 0}

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, if it is unary: behind the limit."""
        if handler.unary_unary is None:
            return handler
        name = method.removeprefix("/")
        critical = name.rpartition("/")[2] in self._limits.critical
        kind = "critical" if critical else "plain"
        inner, most, shed, under_way = handler.unary_unary, self._limits.calls_max, self._shed, self.under_way

        async def limited(request: Any, context: Any) -> Any:
            # Plain calls get what critical ones leave; critical ones are not held up by plain ones.
            ahead = under_way["critical"] + (0 if critical else under_way["plain"])
            if ahead >= most:
                shed.add((name, "calls"))
                raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, metadata={"queued": str(ahead)})
            left_s = context.time_remaining()
            if left_s is not None and left_s <= 0:
                # Nobody waits for the answer any more.
                shed.add((name, "deadline"))
                raise DomainError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
            under_way[kind] += 1
            try:
                return await inner(request, context)
            finally:
                under_way[kind] -= 1

        return grpc.unary_unary_rpc_method_handler(
            limited,
            handler.request_deserializer,
            handler.response_serializer,
        )
