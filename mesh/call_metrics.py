"""Metrics of gRPC calls under the names of gRFC A66, as far as they can be known above grpc.aio.

Own code because grpcio-observability does not reach grpc.aio (grpc#39061). The sizes of compressed messages, which A66
has too, are known only below it. There are no retries in our channels, so an attempt is a call.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self, cast

import grpc

from mesh.interceptors import Handler
from mesh.metrics import Counts, Durations, Metrics

#: Upper bounds of latencies as A66 recommends them, seconds.
_BOUNDS_S = (
    *(0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013),
    *(0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0),
    *(2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
_METHOD, _STATUS, _TARGET = "grpc_method", "grpc_status", "grpc_target"


class MetricsLayer:
    """Counts calls and their durations, by method and status. Outermost, so that it sees the status that is sent."""

    def __init__(self, metrics: Metrics) -> None:
        self._started = metrics.counts("grpc_server_call_started", "Calls begun", (_METHOD,))
        self._took = metrics.durations(
            "grpc_server_call_duration_seconds",
            "Duration of calls, as the server sees it",
            (_METHOD, _STATUS),
            _BOUNDS_S,
        )

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, counted."""
        name = method.removeprefix("/")
        started = (name,)

        fine = self._took.of((name, "OK"))

        def note(error: BaseException | None, context: Any, began: float) -> None:
            histogram = fine if error is None else self._took.of((name, _status(error, context)))
            histogram.add(time.perf_counter() - began)

        if handler.unary_unary is not None:
            inner = handler.unary_unary

            async def unary(request: Any, context: Any) -> Any:
                self._started.add(started)
                began = time.perf_counter()
                try:
                    return await inner(request, context)
                finally:
                    note(sys.exception(), context, began)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        if handler.unary_stream is not None:
            stream = handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                self._started.add(started)
                began = time.perf_counter()
                try:
                    async for response in stream(request, context):  # type: ignore[attr-defined]
                        yield response
                finally:
                    note(sys.exception(), context, began)

            return grpc.unary_stream_rpc_method_handler(
                streaming, handler.request_deserializer, handler.response_serializer
            )
        return handler


def _status(error: BaseException, context: Any) -> str:
    """The name of the status with which a call ends that is left by ``error``."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


class _MeteredChannel:
    """A channel whose calls are counted as the client sees them, by method, target and status.

    It has what generated stubs need of a channel. A unary call is a coroutine here, to be awaited. An interceptor would
    do too, at the price of a task and of grpc.aio's known faults for each call.
    """

    def __init__(self, channel: grpc.aio.Channel, target: str, metrics: "ChannelMetrics") -> None:
        self._channel = channel
        self._target = target
        self._metrics = metrics

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Awaitable[Any]]:
        """A callable for one method."""
        call = self._channel.unary_unary(method, *arguments, **options)
        name, took = method.removeprefix("/"), self._metrics.took
        started, ok = (name, self._target), (name, self._target, "OK")

        async def counted(request: Any, **settings: Any) -> Any:
            self._metrics.started.add(started)
            began = time.perf_counter()
            try:
                response = await call(request, **settings)
            except grpc.aio.AioRpcError as error:
                took.add((*started, error.code().name), time.perf_counter() - began)
                raise
            except asyncio.CancelledError:
                took.add((*started, "CANCELLED"), time.perf_counter() - began)
                raise
            took.add(ok, time.perf_counter() - began)
            return response

        return counted

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """A callable for one method; of streams only the beginnings are counted."""
        call = self._channel.unary_stream(method, *arguments, **options)
        started = (method.removeprefix("/"), self._target)

        def counted(request: Any, **settings: Any) -> Any:
            self._metrics.started.add(started)
            return call(request, **settings)

        return counted

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As grpc.aio.Channel."""
        return self._channel.get_state(try_to_connect)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel."""
        await self._channel.close(grace)


class ChannelMetrics:
    """What all channels of a process count together."""

    def __init__(self, metrics: Metrics) -> None:
        self.started: Counts = metrics.counts("grpc_client_attempt_started", "Calls begun", (_METHOD, _TARGET))
        self.took: Durations = metrics.durations(
            "grpc_client_attempt_duration_seconds",
            "Duration of unary calls, as the client sees it",
            (_METHOD, _TARGET, _STATUS),
            _BOUNDS_S,
        )

    def metered(self, channel: grpc.aio.Channel, target: str) -> grpc.aio.Channel:
        """The channel, counted."""
        # Not derived from the class: that would mean to pass on by hand what no stub of ours uses.
        return cast("grpc.aio.Channel", _MeteredChannel(channel, target, self))
