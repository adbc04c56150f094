"""A channel for programs without asyncio that goes over to a renewed certificate without losing a call."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from flashsale_client.certificates import Certificates, Material, log
from flashsale_client.rotation import Generation, Rotation

#: How long a call waits, seconds, to know whether the connection in use is still there; told within milliseconds.
_KNOWN_WITHIN_S = 1.0


class RenewingChannel:
    """Has what generated stubs need of a grpc.Channel, for any number of threads. ``open_`` makes one for a
    certificate."""

    def __init__(self, certificates: Certificates, open_: Callable[[Material], grpc.Channel]) -> None:
        self._certificates, self._open = certificates, open_
        material = certificates.current()
        self._rotation = Rotation(Generation(material, open_(material)))
        #: Set unless the state of the channel in use is being asked for.
        self._known = threading.Event()
        self._known.set()
        self._lock = threading.Lock()
        self._closers: list[threading.Thread] = []
        self._closed = False

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> "_Unary":
        """As grpc.Channel."""
        return _Unary(self, method, lambda channel: channel.unary_unary(method, *arguments, **options))

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """As grpc.Channel."""

        def call(request: Any, **settings: Any) -> Any:
            generation = self.take()
            return self.until_ended(
                generation,
                lambda: generation.channel.unary_stream(method, *arguments, **options)(request, **settings),
            )

        return call

    def take(self) -> Generation[grpc.Channel]:
        """The channel for a call, which counts until ``ended``."""
        material = self._certificates.current()
        with self._lock:
            if material is not self._rotation.newest and not self._closed:
                self._begin(material)
        self._known.wait(_KNOWN_WITHIN_S)
        with self._lock:
            self._settle()
            self._rotation.now.under_way += 1
            return self._rotation.now

    def _begin(self, material: Material) -> None:
        """Connects with a new certificate, beside what is in use."""
        following, now = Generation(material, self._open(material)), self._rotation.now
        self._drop(self._rotation.begin(following))
        if now.watcher is None:
            # It may have lost its connection while nobody called: calls wait until that is known.
            self._known.clear()
            now.state = None
            self._watch(now)
        self._watch(following, connect=True)

    def _watch(self, generation: Generation[grpc.Channel], *, connect: bool = False) -> None:
        """Has its states told from now on, by a thread of gRPC's."""
        generation.watcher = partial(self._saw, generation)
        generation.channel.subscribe(generation.watcher, try_to_connect=connect)

    def until_ended(self, generation: Generation[grpc.Channel], begin: Callable[[], Any]) -> Any:
        """A call that goes on after its beginning."""
        try:
            call = begin()
        except BaseException:
            self.ended(generation)
            raise
        if not call.add_callback(lambda: self.ended(generation)):
            self.ended(generation)
        return call

    def ended(self, generation: Generation[grpc.Channel]) -> None:
        """A call on it has ended."""
        with self._lock:
            self._drop(self._rotation.ended(generation))

    def _saw(self, generation: Generation[grpc.Channel], state: grpc.ChannelConnectivity) -> None:
        with self._lock:
            if generation.saw(state) and generation is self._rotation.next:
                log.warning("no connection with the new certificate yet, the old one stays in use")
            self._settle()
            if generation is self._rotation.now:
                self._known.set()

    def _settle(self) -> None:
        before = self._rotation.now
        self._drop(self._rotation.settle(time.time()))
        if before is not self._rotation.now:
            self._known.set()
            for generation in (before, self._rotation.now):
                generation.channel.unsubscribe(generation.watcher)
                generation.watcher = None
            log.info("gone over to the new certificate, %d calls left on the old one", before.under_way)

    def _drop(self, generations: list[Generation[grpc.Channel]]) -> None:
        """Closes them in threads of their own, for here a thread of gRPC's may be at work that closing waits for."""
        self._closers = [closer for closer in self._closers if closer.is_alive()]
        for generation in generations:
            closer = threading.Thread(target=generation.channel.close, name="close a channel", daemon=True)
            closer.start()
            self._closers.append(closer)

    def close(self) -> None:
        """Ends every connection; calls under way are cancelled."""
        with self._lock:
            self._closed = True
            self._drop(self._rotation.end())
            closers = self._closers
        for closer in closers:
            closer.join()


class _Unary:
    """As grpc.UnaryUnaryMultiCallable."""

    def __init__(self, owner: RenewingChannel, method: str, make: Callable[[grpc.Channel], Any]) -> None:
        self._owner, self._method, self._make = owner, method, make

    def _of(self, generation: Generation[grpc.Channel]) -> Any:
        made = generation.callables.get(self._method)
        if made is None:
            made = generation.callables.setdefault(self._method, self._make(generation.channel))
        return made

    def __call__(self, request: Any, **settings: Any) -> Any:
        generation = self._owner.take()
        try:
            return self._of(generation)(request, **settings)
        finally:
            self._owner.ended(generation)

    def with_call(self, request: Any, **settings: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable."""
        generation = self._owner.take()
        try:
            return self._of(generation).with_call(request, **settings)
        finally:
            self._owner.ended(generation)

    def future(self, request: Any, **settings: Any) -> Any:
        """As grpc.UnaryUnaryMultiCallable."""
        generation = self._owner.take()
        return self._owner.until_ended(generation, lambda: self._of(generation).future(request, **settings))
