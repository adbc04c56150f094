"""Which connection a call takes while one certificate follows another. No I/O.

gRPC's credentials of a channel are fixed when it is made (of grpcio 1.82 only those of a server can change). So there
is one channel for each certificate: calls go to the newest that is connected, those under way stay where they are, and
an older channel is closed when its last call has ended.
"""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from flashsale_client.certificates import Material

ChannelT = TypeVar("ChannelT", grpc.Channel, grpc.aio.Channel)

#: With less than this left, seconds, a certificate is given up for a newer one before that is connected: services
#: refuse calls on a connection that has outlived its certificate.
_ENDS_WITHIN_S = 60.0


@dataclass(eq=False)
class Generation(Generic[ChannelT]):
    """The channel of one certificate."""

    material: Material
    channel: ChannelT
    #: As last seen; None while it is not known.
    state: grpc.ChannelConnectivity | None = None
    #: Whether it has failed to connect.
    refused: bool = False
    #: Calls that have not ended.
    under_way: int = 0
    #: What the channel made for each method.
    callables: dict[str, Any] = field(default_factory=dict)
    #: Who is told of its states, where that has to be ended.
    watcher: Any = None

    def saw(self, state: grpc.ChannelConnectivity) -> bool:
        """Notes the channel's state; whether it is the first time that it could not connect."""
        self.state = state
        failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        first = failed and not self.refused
        self.refused |= failed
        return first


class Rotation(Generic[ChannelT]):
    """The generations of one channel, at most two besides those that calls are still under way on. Whatever a method
    returns is needed no more and is to be closed by its caller."""

    def __init__(self, first: Generation[ChannelT]) -> None:
        self.now: Generation[ChannelT] = first
        #: What is to follow, once it is connected.
        self.next: Generation[ChannelT] | None = None
        self._older: set[Generation[ChannelT]] = set()

    @property
    def newest(self) -> Material:
        """The newest certificate that there is a channel for."""
        return (self.next or self.now).material

    def begin(self, generation: Generation[ChannelT]) -> list[Generation[ChannelT]]:
        """Lets it follow, in place of what was to follow and was never used."""
        abandoned = [] if self.next is None else [self.next]
        self.next = generation
        return abandoned

    def settle(self, now_s: float) -> list[Generation[ChannelT]]:
        """Goes over to what is to follow, if it is time; ``now_s`` is Unix time."""
        if self.next is None or not self._is_time(self.next, now_s):
            return []
        before, self.now, self.next = self.now, self.next, None
        if before.under_way:
            self._older.add(before)
            return []
        return [before]

    def _is_time(self, following: Generation[ChannelT], now_s: float) -> bool:
        if following.state is grpc.ChannelConnectivity.READY:
            return True
        if self.now.material.expires_at - now_s < (0.0 if following.refused else _ENDS_WITHIN_S):
            return True
        # Calls need another connection anyway. With a certificate that nobody seems to trust yet it is not tried.
        return self.now.state not in (None, grpc.ChannelConnectivity.READY) and not following.refused

    def ended(self, generation: Generation[ChannelT]) -> list[Generation[ChannelT]]:
        """A call on it has ended."""
        generation.under_way -= 1
        if generation.under_way == 0 and generation in self._older:
            self._older.discard(generation)
            return [generation]
        return []

    def end(self) -> list[Generation[ChannelT]]:
        """All of them."""
        everything = [self.now]
        everything.extend(self._older)
        if self.next is not None:
            everything.append(self.next)
        self.next = None
        self._older.clear()
        return everything
