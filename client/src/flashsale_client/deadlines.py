"""Deadlines for calls that are given none, also those that go past everything else the client does.

A service config has a timeout too, but gRPC does not tell the service of it (seen with grpcio 1.82.3), which would work
on for nobody.
"""

from typing import Any


class _Bounded:
    """A method of a stub, with a deadline."""

    def __init__(self, call: Any, timeout_s: float) -> None:
        self._call = call
        self._timeout_s = timeout_s

    def __call__(self, request: Any, timeout: float | None = None, **settings: Any) -> Any:
        return self._call(request, timeout=self._timeout_s if timeout is None else timeout, **settings)

    def with_call(self, request: Any, timeout: float | None = None, **settings: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable, of a channel without asyncio."""
        return self._call.with_call(request, timeout=self._timeout_s if timeout is None else timeout, **settings)

    def future(self, request: Any, timeout: float | None = None, **settings: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable, of a channel without asyncio."""
        return self._call.future(request, timeout=self._timeout_s if timeout is None else timeout, **settings)


class WithDeadlines:
    """Has what stubs need of a channel, of either kind."""

    def __init__(self, channel: Any, *, timeout_s: float, stream_s: float) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._stream_s = stream_s

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> _Bounded:
        """As grpc.Channel."""
        return _Bounded(self._channel.unary_unary(method, *arguments, **options), self._timeout_s)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> _Bounded:
        """As grpc.Channel."""
        return _Bounded(self._channel.unary_stream(method, *arguments, **options), self._stream_s)
