"""Starting, watching over and draining a gRPC server, and running a process's main coroutine."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mesh import failpoints, tracing
from mesh.answering import AnswerBounds, AnswerLayer
from mesh.call_metrics import MetricsLayer
from mesh.callers import AllowList, CallersLayer
from mesh.health import Health
from mesh.interceptors import ErrorLayer, Layer, LayersInterceptor, LimitLayer, Limits
from mesh.logs import get_logger
from mesh.metrics import Metrics
from mesh.peer_limits import CONNECTIONS_MAX, STREAMS_MAX, server_limits
from mesh.receiving import ReceiveLayer, ReceivingBounds
from mesh.settings import SettingsError
from mesh.transport import PLAINTEXT, Transport, show_expiry

log = get_logger(__name__)

# Without this a second process would share the port unnoticed and take half of the calls.
_OWN_PORT = ("grpc.so_reuseport", 0)

#: Adds a servicer to a server: the generated ``add_XServicer_to_server`` bound to its servicer.
Registration = tuple[str, Callable[[grpc.aio.Server], None]]


#: What the setting that switches reflection off is called in every service, and what it means.
REFLECTION_SETTING = "MESH_REFLECTION"
REFLECTION_HELP = "whether callers may ask the server for its contract (gRPC reflection)"

#: Allocations between two collections of young objects, and how many such collections between those of older ones.
#: A burst's thousands of waiting requests are no garbage: by default (700, 10, 10) Python goes through them again and
#: again, which took a fifth of the gateway's time.
_GC_THRESHOLDS = (50_000, 20, 50)


def run_process(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Runs ``main`` on uvloop; the exit code: 0, or 2 with one line on standard error for a wrong setting."""
    # What was imported lives as long as the process; no collection need look at it again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        failpoints.configure()
        uvloop.run(main())
    except SettingsError as error:
        sys.stderr.write(f"settings: {error}\n")
        return 2
    return 0


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def until_stopped(stop: asyncio.Event, crashed: "asyncio.Future[BaseException]") -> None:
    """Waits until the process is to end: for ``stop``, or for a task it needs to fail, which is raised then."""
    stopping = asyncio.ensure_future(stop.wait())
    ends: set[asyncio.Future[Any]] = {stopping, crashed}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if crashed.done():
        raise crashed.result()


def callers_layers(transport: Transport, allowed: AllowList, metrics: Metrics) -> list[CallersLayer]:
    """The check of who calls. None in the clear: nobody can prove there who he is, so only this machine can call."""
    if transport.certificates is None:
        return []
    refused = metrics.counts(
        "flashsale_callers_refused",
        "Calls refused because the peer may not make them, by method and the kind of peer",
        ("grpc_method", "kind"),
    )
    return [CallersLayer(allowed, transport.certificates.trust_domain, refused)]


class GrpcServer:
    """A grpc.aio server with health, reflection, error mapping, metrics, limits of calls, requests and peers and, where
    ``transport`` has certificates, a check of who calls: ``allowed`` says which kinds of peers may call which methods.

    ``registrations`` are (full service name, function that adds its servicer); ``streams_max`` is of calls under way on
    one connection. Used as an async context manager: it is
    NOT_SERVING until ``serving()`` is called; on leaving it says NOT_SERVING, gives whoever watches that a quarter of a
    second to go elsewhere, then takes no new calls, gives those under way ``grace_s`` seconds and then cancels them.
    """

    def __init__(
        self,
        listen: str,
        registrations: Sequence[Registration],
        *,
        metrics: Metrics | None = None,
        limits: Limits | None = None,
        transport: Transport = PLAINTEXT,
        allowed: AllowList | None = None,
        receiving: ReceivingBounds | None = None,
        answering: AnswerBounds | None = None,
        connections_max: int = CONNECTIONS_MAX,
        streams_max: int = STREAMS_MAX,
        grace_s: float = 5.0,
        with_reflection: bool = True,
    ) -> None:
        self._listen = listen
        self._registrations = registrations
        metrics = metrics or Metrics()
        shed = metrics.counts(
            "flashsale_calls_shed",
            "Calls refused for want of room (calls), because their deadline had passed (deadline), or because the peer "
            "does not take the answers that it has (unread)",
            ("grpc_method", "reason"),
        )
        limit = LimitLayer(limits or Limits(), shed)
        metrics.gauges(
            "flashsale_calls_under_way",
            "Unary calls under way, those of methods that are shed last apart",
            ("kind",),
            lambda: {(kind,): calls for kind, calls in limit.under_way.items()},
        )
        refused = metrics.counts(
            "flashsale_requests_refused",
            "Requests refused before they were begun: late or crowded out on their way, too many bytes beside others, "
            "missing, malformed",
            ("grpc_method", "reason"),
        )
        receive = ReceiveLayer(receiving or ReceivingBounds(), refused)
        metrics.gauge(
            "flashsale_requests_incomplete", "Requests that have not come whole yet", lambda: receive.incomplete
        )
        metrics.gauge(
            "flashsale_request_bytes_under_way",
            "Bytes of the requests that are being worked on",
            lambda: receive.bytes_under_way,
        )
        answers = AnswerLayer(answering or AnswerBounds(), shed)
        metrics.gauge(
            "flashsale_answer_bytes_unread",
            "Bytes of answers that their callers have not taken yet, small ones left out",
            lambda: answers.bytes_unread,
        )
        show_expiry(transport, metrics)
        # What refuses is inside the error mapping, so that a refusal is mapped like any other error; and who may not
        # call takes nobody's room, and leaves nothing in a trace.
        layers: list[Layer] = [MetricsLayer(metrics), ErrorLayer(), *callers_layers(transport, allowed or {}, metrics)]
        if tracing.is_on():
            layers.append(tracing.TracingLayer())
        layers += [limit, answers]
        self._interceptor = LayersInterceptor(*layers, outermost=receive)
        self._transport = transport
        self._options = [_OWN_PORT, *server_limits(connections_max=connections_max, streams_max=streams_max)]
        self._grace_s = grace_s
        self._with_reflection = with_reflection
        self._health = Health()
        self._server: grpc.aio.Server | None = None
        #: Port bound, for a ``listen`` that ends in :0.
        self.port = 0

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(interceptors=[self._interceptor], options=self._options)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [name for name, _ in self._registrations]
        for _, register in self._registrations:
            register(server)
        if self._with_reflection:
            known = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*known, reflection.SERVICE_NAME), server)
        self.port = self._transport.listen(server, self._listen)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        self._server = server
        return self

    async def serving(self) -> None:
        """Says SERVING to health checks."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", listen=self._listen, services=[name for name, _ in self._registrations])

    async def _set_health(self, status: Any) -> None:
        for name in ("", *(name for name, _ in self._registrations)):
            await self._health.set(name, status)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            log.info("draining", listen=self._listen, grace_s=self._grace_s)
            await self._health.drain()
            await self._server.stop(self._grace_s)
