"""Traces of purchases (OpenTelemetry): one trace for each, whose id is the 128 bits of the purchase's own id.

So every process knows the trace of whatever purchase it has in hand, and decides by the id alone whether it is one of
those that are recorded: nobody need be told, and a purchase is recorded by all processes or by none. What travels with
calls and messages is only which span is another's parent, for the purchases of a batch together (``HEADER``).

Work is done in batches, so a span of a purchase lasts as long as the batch's work does, and spans nest by purchase and
not by task: a batch gathers what many callers wait for. A purchase that comes to a process by a way that tells no
parent (the sweeper's, or one beyond ``_LINKED_MAX`` in a call) begins another tree in the same trace.

Off unless ``mesh.trace_export`` turns it on; then ``spans`` and all others return at once, for a whole batch together.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from types import TracebackType
from typing import Any, Final, Protocol, Self

import grpc

#: Metadata of calls, and header of messages: for each recorded purchase the trace id, 16 bytes, and that of the span
#: in which it was sent on, 8 bytes.
HEADER: Final = "flashsale-spans-bin"
_TRACE_BYTES, _SPAN_BYTES = 16, 8
_LINK_BYTES = _TRACE_BYTES + _SPAN_BYTES
#: Most purchases whose parent is told in one call or message: 4 KB as HTTP/2 carries them, a quarter of what a server
#: takes in metadata.
_LINKED_MAX = 128
#: Of an id, the bits that decide whether it is recorded: those that W3C Trace Context, level 2, asks to be random. The
#: higher ones are no use: they tell the sale, and a UUID's version and variant.
_RANDOM_BITS = 56

Id = uuid.UUID | str
#: The open span of each purchase under which others are to be, by trace id.
Parents = Mapping[int, int]
Metadata = tuple[tuple[str, bytes], ...]
Value = str | int | float | bool
Attributes = Mapping[str, Value]


class Kind(Enum):
    """What a span is about, as OpenTelemetry tells it."""

    INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(5)


class Span(Protocol):
    """An open span."""

    span_id: int

    def set(self, name: str, value: Value) -> None:
        """Sets an attribute."""

    def end(self, error: str | None) -> None:
        """Ends it, as failed if there is an ``error``."""


class Recorder(Protocol):
    """Where spans are begun, and what becomes of them once they have ended."""

    def begin(
        self, name: str, kind: Kind, trace_id: int, parent: int | None, age_s: float, attributes: Attributes
    ) -> Span:
        """A span that began ``age_s`` seconds ago."""


def trace_id_of(purchase_id: Id) -> int:
    """The id of a purchase's trace. ``purchase_id`` is a UUID, or its text in canonical form."""
    return purchase_id.int if isinstance(purchase_id, uuid.UUID) else int(purchase_id.replace("-", ""), 16)


class _Tracing:
    """What is recorded, and the spans that are open in this process, by trace id: the innermost last."""

    def __init__(self, recorder: Recorder, ratio: float) -> None:
        assert 0 < ratio <= 1
        self.recorder = recorder
        self._threshold = round((1 - ratio) * (1 << _RANDOM_BITS))
        self.open: dict[int, list[int]] = {}

    def records(self, trace_id: int) -> bool:
        return trace_id & ((1 << _RANDOM_BITS) - 1) >= self._threshold

    def recorded(self, ids: Iterable[Id]) -> list[int]:
        return [each for each in dict.fromkeys(map(trace_id_of, ids)) if self.records(each)]

    def parent_of(self, trace_id: int) -> int | None:
        spans = self.open.get(trace_id)
        return spans[-1] if spans else None

    def push(self, trace_id: int, span_id: int) -> None:
        self.open.setdefault(trace_id, []).append(span_id)

    def pop(self, trace_id: int, span_id: int) -> None:
        # Not always the last: the same purchase may be in two batches at once.
        spans = self.open[trace_id]
        spans.remove(span_id)
        if not spans:
            del self.open[trace_id]


_tracing: _Tracing | None = None


def turn_on(recorder: Recorder, ratio: float) -> None:
    """Records purchases from now on: the part ``ratio`` of them, above 0 and at most 1."""
    global _tracing
    _tracing = _Tracing(recorder, ratio)


def turn_off() -> None:
    """Begins no more spans."""
    global _tracing
    _tracing = None


def is_on() -> bool:
    """Whether any purchase is recorded."""
    return _tracing is not None


class Group:
    """The spans of a batch's recorded purchases, all of one name: a context manager."""

    def __init__(self, tracing: _Tracing, begun: Iterable[tuple[int, Span]]) -> None:
        self._tracing = tracing
        self._spans = dict(begun)

    def __enter__(self) -> Self:
        for trace_id, span in self._spans.items():
            self._tracing.push(trace_id, span.span_id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = None if error is None else _told(error)
        for trace_id, span in self._spans.items():
            self._tracing.pop(trace_id, span.span_id)
            span.end(told)

    def set(self, purchase_id: Id, name: str, value: Value) -> None:
        """Sets an attribute of a purchase's span, if it has one."""
        span = self._spans.get(trace_id_of(purchase_id))
        if span is not None:
            span.set(name, value)

    @property
    def metadata(self) -> Metadata:
        """What tells the callee which spans its own are under."""
        pairs = [(trace_id, span.span_id) for trace_id, span in self._spans.items()][:_LINKED_MAX]
        octets = b"".join(
            trace_id.to_bytes(_TRACE_BYTES) + span_id.to_bytes(_SPAN_BYTES) for trace_id, span_id in pairs
        )
        return ((HEADER, octets),) if octets else ()


def _told(error: BaseException) -> str:
    """What a trace tells of an error: its reason, status or kind. Its text may tell more than a trace should."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return str(getattr(error, "reason_name", type(error).__name__))


_NOTHING: AbstractContextManager[None] = nullcontext()
_NO_PARENTS: Parents = {}


def spans(
    name: str, ids: Iterable[Id], kind: Kind = Kind.INTERNAL, attributes: Attributes | None = None
) -> "AbstractContextManager[Group | None]":
    """Spans around what is done with these purchases; None where none of them is recorded. ``ids`` is not even looked
    at while tracing is off, so give a generator where a list would have to be made."""
    if _tracing is None:
        return _NOTHING
    return _begun(_tracing, name, kind, attributes or {}, ((each, 0.0) for each in _tracing.recorded(ids)))


def requests(
    name: str, ages: Iterable[tuple[Id, float]], attributes: Attributes | None = None
) -> "AbstractContextManager[Group | None]":
    """As ``spans``, around what is done for requests that came in some seconds ago: the roots of traces."""
    if _tracing is None:
        return _NOTHING
    tracing = _tracing
    known = {trace_id_of(each): age_s for each, age_s in ages}
    recorded = ((trace_id, age_s) for trace_id, age_s in known.items() if tracing.records(trace_id))
    return _begun(tracing, name, Kind.SERVER, attributes or {}, recorded)


def calling(method: str, ids: Iterable[Id]) -> "AbstractContextManager[Group | None]":
    """As ``spans``, around a gRPC call about these purchases; ``method`` is its full name: package.Service/Method. To
    be called with ``metadata_of`` what this gives."""
    if _tracing is None:
        return _NOTHING
    return spans(method, ids, Kind.CLIENT, {"rpc.system.name": "grpc", "rpc.method": method})


def sql(query: str, ids: Iterable[Id]) -> "AbstractContextManager[Group | None]":
    """As ``spans``, around the transaction that a query is about."""
    if _tracing is None:
        return _NOTHING
    return spans(f"SQL {query}", ids, Kind.CLIENT, {"db.system.name": "postgresql", "db.query.summary": query})


def publishing(exchange: str, ids: Iterable[Id]) -> "AbstractContextManager[Group | None]":
    """As ``spans``, around publishing one message about these purchases, with ``headers_of`` what this gives."""
    if _tracing is None:
        return _NOTHING
    attributes = {"messaging.system": "rabbitmq", "messaging.destination.name": exchange}
    return spans(f"publish {exchange}", ids, Kind.PRODUCER, attributes)


def consuming(work: str, ids: Iterable[Id]) -> "AbstractContextManager[Group | None]":
    """As ``spans``, around what messages about these purchases set going."""
    if _tracing is None:
        return _NOTHING
    return spans(work, ids, Kind.CONSUMER, {"messaging.system": "rabbitmq"})


def _begun(
    tracing: _Tracing, name: str, kind: Kind, attributes: Attributes, recorded: Iterable[tuple[int, float]]
) -> "AbstractContextManager[Group | None]":
    begun = [
        (trace_id, tracing.recorder.begin(name, kind, trace_id, tracing.parent_of(trace_id), age_s, attributes))
        for trace_id, age_s in recorded
    ]
    return Group(tracing, begun) if begun else _NOTHING


def metadata_of(group: Group | None) -> Metadata | None:
    """The metadata of a call within ``calling``; None, which is none, where nothing is recorded."""
    return None if group is None else group.metadata


def headers_of(group: Group | None) -> dict[str, Any] | None:
    """As ``metadata_of``, for the headers of a message within ``publishing``; as AMQP's byte array, for which pamqp
    wants a bytearray."""
    return None if group is None else {name: bytearray(octets) for name, octets in group.metadata}


def parents_in(pairs: Mapping[str, Any] | Sequence[tuple[str, Any]] | None) -> Parents:
    """The parents that a call's metadata or a message's headers tell. What is not of our making tells none: it comes
    from outside the process, and a trace is worth no error."""
    if _tracing is None or not pairs:
        return _NO_PARENTS
    octets = dict(pairs).get(HEADER)
    if (
        not isinstance(octets, bytes | bytearray)
        or len(octets) % _LINK_BYTES
        or len(octets) > _LINKED_MAX * _LINK_BYTES
    ):
        return _NO_PARENTS
    return {trace_id: span_id for trace_id, span_id in _links(octets) if _tracing.records(trace_id) and span_id}


def _links(octets: bytes | bytearray) -> Iterator[tuple[int, int]]:
    for start in range(0, len(octets), _LINK_BYTES):
        middle = start + _TRACE_BYTES
        yield int.from_bytes(octets[start:middle]), int.from_bytes(octets[middle : start + _LINK_BYTES])


def open_spans(ids: Iterable[Id]) -> Parents:
    """The spans that are open for these purchases now: to be given to ``under`` by whoever goes on with them later."""
    if _tracing is None:
        return _NO_PARENTS
    found = ((each, _tracing.parent_of(each)) for each in _tracing.recorded(ids))
    return {trace_id: span_id for trace_id, span_id in found if span_id is not None}


class _Under:
    """Lets spans be under others that are not open here (any more)."""

    def __init__(self, tracing: _Tracing, parents: Parents) -> None:
        self._tracing = tracing
        self._parents = parents

    def __enter__(self) -> None:
        for trace_id, span_id in self._parents.items():
            self._tracing.push(trace_id, span_id)

    def __exit__(self, *_: object) -> None:
        for trace_id, span_id in self._parents.items():
            self._tracing.pop(trace_id, span_id)


def under(parents: Parents) -> "AbstractContextManager[None]":
    """Within it, new spans of these purchases are under those that ``parents`` names."""
    if _tracing is None or not parents:
        return _NOTHING
    return _Under(_tracing, parents)


class TracingLayer:
    """Spans around the calls of a server, for the recorded purchases that the caller names in its metadata. Only where
    tracing is on when a server is made is it put around anything."""

    def wrap(self, handler: "grpc.RpcMethodHandler[Any, Any]", method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """The handler, if it is unary: traced."""
        if handler.unary_unary is None:
            return handler
        inner, name = handler.unary_unary, method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}

        async def traced(request: Any, context: Any) -> Any:
            parents = parents_in(context.invocation_metadata())
            if not parents:
                return await inner(request, context)
            with under(parents), spans(name, map(purchase_of, parents), Kind.SERVER, attributes):
                return await inner(request, context)

        return grpc.unary_unary_rpc_method_handler(traced, handler.request_deserializer, handler.response_serializer)


def purchase_of(trace_id: int) -> uuid.UUID:
    """The purchase of a trace."""
    return uuid.UUID(int=trace_id)
