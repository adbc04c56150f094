"""The HTTP server of the gateway: its port, its limits, its certificate, its end."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from gateway.cross_origin import Application
from gateway.settings import Settings
from mesh.logs import get_logger
from mesh.metrics import Metrics
from mesh.settings import SettingsError

log = get_logger(__name__)

#: Longest request head, bytes; hyper answers 431 by itself beyond it.
_HEAD_BYTES_MAX = 16 * 1024
#: How long a connection may be idle or take to send a request's head, ms.
_HEAD_TIMEOUT_MS = 60_000
#: How long the server may take to listen, s.
_START_S_MAX = 5.0


def show_own_expiry(settings: Settings, metrics: Metrics) -> None:
    """Shows when the certificate that buyers are shown expires; this process reads it now and never again. Raises
    SettingsError for one that cannot be read."""
    if not settings.tls_certificate:
        return
    try:
        certificate = x509.load_pem_x509_certificates(Path(settings.tls_certificate).read_bytes())[0]
    except (OSError, ValueError) as error:
        raise SettingsError(f"GATEWAY_TLS_CERTIFICATE: {settings.tls_certificate} cannot be read: {error}") from error
    expires_at = certificate.not_valid_after_utc.timestamp()
    metrics.gauge(
        "gateway_certificate_expiry_timestamp_seconds",
        "Unix time at which the certificate that buyers are shown expires",
        lambda: expires_at,
    )


@contextmanager
def reserved_port(settings: Settings) -> Iterator[int]:
    """Holds the port to listen on, so that Granian can have it and nobody else. Raises SettingsError when it is taken.

    Granian itself shares a port with whoever has it already (SO_REUSEPORT): a gateway left over would go on answering
    half of the requests.
    """
    host, port = settings.address
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise SettingsError(f"GATEWAY_LISTEN: cannot listen on {settings.listen}: {error.strerror}") from error
        # From now on shared, with Granian.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield held.getsockname()[1]


class HttpServer:
    """Granian inside our event loop, one worker: HTTP/1.1 with keep-alive, over TLS where there is a certificate."""

    def __init__(self, app: Application, settings: Settings, port: int) -> None:
        self._address = (settings.address[0], port)
        self._server = Server(
            app,
            address=settings.address[0],
            port=port,
            interface=Interfaces.RSGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=settings.backlog,
            # One permit for each connection, for as long as it lives.
            backpressure=settings.connections_max,
            http1_settings=HTTP1Settings(header_read_timeout=_HEAD_TIMEOUT_MS, max_buffer_size=_HEAD_BYTES_MAX),
            ssl_cert=Path(settings.tls_certificate) if settings.tls_certificate else None,
            ssl_key=Path(settings.tls_key) if settings.tls_key else None,
            ssl_protocol_min=SSLProtocols.tls12,
            log_level=LogLevels.error,
            # Only the level: its lines go through our own handler.
            log_dictconfig={"incremental": True, "formatters": {}, "handlers": {}, "loggers": {}},
            log_access=False,
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to listen; returns when it does."""
        self._running = asyncio.get_running_loop().create_task(self._server.serve(), name="http server")
        async with asyncio.timeout(_START_S_MAX):
            while not await self._answers():
                if self._running.done():
                    self._running.result()
                    raise RuntimeError("the HTTP server ended by itself")
                await asyncio.sleep(0.005)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(*self._address)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections and gives requests under way ``grace_s`` seconds."""
        if self._running is None or self._running.done():
            return
        self._server.stop()  # type: ignore[no-untyped-call]
        _, late = await asyncio.wait({self._running}, timeout=grace_s)
        for task in late:
            log.warning("requests cut off", grace_s=grace_s)
            task.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
