"""Records spans with OpenTelemetry and sends them to an OTLP collector (over HTTP, protobuf).

Spans are sent by a thread of the library's own, in batches, from a bounded queue: what does not fit, or no collector
takes, is dropped, and never waited for. Imported only where tracing is on.
"""

import logging
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace import Span as LibrarySpan

from mesh import tracing

#: Spans that wait to be sent, how many are sent at once, and the longest time between two sendings, ms.
_QUEUE_MAX, _BATCH_MAX, _EVERY_MS = 16_384, 512, 1_000
#: How long one sending may take, repetitions included, s.
_EXPORT_S_MAX = 5.0

_KINDS = {kind: SpanKind[kind.name] for kind in tracing.Kind}
_FLAGS = TraceFlags(TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID)


class _Ids(RandomIdGenerator):
    """Random span ids; and for a span without a parent, the trace that it is to be in."""

    trace_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def is_trace_id_random(self) -> bool:
        # Of a purchase's id as many bits are as the flag wants: 56, and 6 more.
        return True


class _Span:
    """One of the library's, as ``tracing.Span``."""

    __slots__ = ("_span", "span_id")

    def __init__(self, span: LibrarySpan) -> None:
        self._span = span
        self.span_id = span.get_span_context().span_id

    def set(self, name: str, value: tracing.Value) -> None:
        self._span.set_attribute(name, value)

    def end(self, error: str | None) -> None:
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
            self._span.set_attribute("error.type", error)
        self._span.end()


class SpanRecorder:
    """Sends spans of ``service`` to ``endpoint``, a collector's whole address. For one thread: the event loop's."""

    def __init__(self, service: str, endpoint: str) -> None:
        # A line each time something could not be sent is enough, and not one for each repetition.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource({"service.name": service, "service.namespace": "flashsale"}),
            id_generator=self._ids,
            # What is recorded has been decided already, by the id.
            sampler=ALWAYS_ON,
            span_limits=SpanLimits(max_span_attributes=16, max_events=0, max_links=0),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S_MAX),
                max_queue_size=_QUEUE_MAX,
                max_export_batch_size=_BATCH_MAX,
                schedule_delay_millis=_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("flashsale")

    def begin(
        self,
        name: str,
        kind: tracing.Kind,
        trace_id: int,
        parent: int | None,
        age_s: float,
        attributes: tracing.Attributes,
    ) -> tracing.Span:
        """As ``tracing.Recorder``."""
        context = Context()
        if parent is not None:
            known = SpanContext(trace_id, parent, is_remote=True, trace_flags=_FLAGS)
            context = set_span_in_context(NonRecordingSpan(known), context)
        self._ids.trace_id = trace_id
        return _Span(
            self._tracer.start_span(
                name,
                context,
                _KINDS[kind],
                {**attributes, "flashsale.purchase_id": str(tracing.purchase_of(trace_id))},
                start_time=time.time_ns() - round(age_s * 1e9),
            )
        )

    def shut_down(self) -> None:
        """Sends what waits, and ends the thread. Blocks."""
        self._provider.shutdown()
