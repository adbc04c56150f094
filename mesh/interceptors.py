"""Server interceptors: the one place where errors become gRPC status, and the limit of calls under way."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from grpc_status import rpc_status

from mesh.errors import DomainError, from_rpc_error, to_status
from mesh.logs import get_logger

log = get_logger(__name__)

# In quotes: grpc's classes take no type arguments at run time.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

#: Served whatever the load, so that an overloaded process is not taken for a dead one.
_UNLIMITED = ("/grpc.health.v1.", "/grpc.reflection.")


async def _abort(context: Any, error: DomainError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


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


class _Wrapping(grpc.aio.ServerInterceptor):
    """Wraps the handler of each method once and not at each call: they are the same for as long as a server lives."""

    def __init__(self) -> None:
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
        if handler is None or method.startswith(_UNLIMITED):
            return handler
        self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        raise NotImplementedError


class ErrorInterceptor(_Wrapping):
    """Turns what a handler raises into google.rpc.Status with ErrorInfo. An unexpected error is logged under an id that
    the client is told; its text and trace stay here."""

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if handler.unary_unary is not None:
            inner = handler.unary_unary

            async def unary(request: Any, context: Any) -> Any:
                try:
                    return await inner(request, context)
                except (grpc.aio.AbortError, asyncio.CancelledError):
                    raise
                except Exception as error:  # noqa: BLE001 (every error becomes a status)
                    await _abort(context, _domain_error(error, method))

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
                    await _abort(context, _domain_error(error, method))

            return grpc.unary_stream_rpc_method_handler(
                streaming,
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler


class LimitInterceptor(_Wrapping):
    """Refuses a unary call with OVERLOADED and RetryInfo while ``calls_max`` others are under way.

    Own code because grpc.aio's maximum_concurrent_rpcs counts health checks and sends no RetryInfo.
    """

    def __init__(self, calls_max: int) -> None:
        super().__init__()
        self._calls_max = calls_max
        self._calls = 0

    def _wrap(self, handler: Handler, method: str) -> Handler:
        if handler.unary_unary is None:
            return handler
        inner = handler.unary_unary

        async def limited(request: Any, context: Any) -> Any:
            if self._calls >= self._calls_max:
                raise DomainError(ErrorReason.ERROR_REASON_OVERLOADED, metadata={"queued": str(self._calls)})
            self._calls += 1
            try:
                return await inner(request, context)
            finally:
                self._calls -= 1

        return grpc.unary_unary_rpc_method_handler(
            limited,
            handler.request_deserializer,
            handler.response_serializer,
        )
