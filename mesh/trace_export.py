"""Turns tracing on in a process where the settings say so."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from mesh import tracing
from mesh.logs import get_logger
from mesh.settings import SettingsError, read_settings, setting

log = get_logger(__name__)

PREFIX = "MESH_TRACE_"
#: How long a process that ends may take to send its last spans, s.
_LAST_S_MAX = 3.0


@dataclass(frozen=True)
class TraceSettings:
    """Which purchases are traced, and where to."""

    ratio: float = setting("part of the purchases that are traced; 0: none", default=0.0, minimum=0.0, maximum=1.0)
    otlp_endpoint: str = setting("http(s)://host:port of an OTLP collector", default="http://127.0.0.1:4318")

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.otlp_endpoint)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise SettingsError(f"{PREFIX}OTLP_ENDPOINT: it is not http(s)://host:port")
        if "@" in parts.netloc:
            # The address is logged. What a collector asks for travels in headers: OTEL_EXPORTER_OTLP_HEADERS.
            raise SettingsError(f"{PREFIX}OTLP_ENDPOINT: it must not hold a password")


async def _end(shut_down: Callable[[], None]) -> None:
    """Calls ``shut_down``, which blocks, and goes on without it where the collector does not answer. Its thread is one
    that no exit of the process waits for."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        shut_down()
        # The loop may be gone by then.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, name="last spans", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_S_MAX):
            await ended.wait()


@asynccontextmanager
async def exporting(service: str) -> AsyncIterator[None]:
    """Until left, traces as ``service`` the part of the purchases that MESH_TRACE_RATIO says; 0, the default: none, and
    nothing is even loaded. To be entered before servers are made. Raises SettingsError."""
    settings = read_settings(TraceSettings, PREFIX)
    if settings.ratio == 0:
        yield
        return
    # Here, so that nothing of OpenTelemetry is loaded where nothing is traced.
    from mesh.span_recorder import SpanRecorder

    recorder = SpanRecorder(service, settings.otlp_endpoint.rstrip("/") + "/v1/traces")
    tracing.turn_on(recorder, settings.ratio)
    log.info("tracing", ratio=settings.ratio, otlp_endpoint=settings.otlp_endpoint)
    try:
        yield
    finally:
        tracing.turn_off()
        await _end(recorder.shut_down)
