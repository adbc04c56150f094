"""Pages of other sites that may use the gateway (CORS, WHATWG Fetch, section 3.2): none unless the settings name them.

Around the application and not in it, so that nothing is asked of a request where no site is named.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from gateway.problems import Headers
from mesh.settings import SettingsError

_METHODS = "GET, POST, DELETE"
#: What a page may send, and what it may read, beyond what every page may.
_SENT = "authorization, content-type, idempotency-key, if-none-match, last-event-id"
_READ = "etag, location, retry-after, ratelimit-limit, ratelimit-remaining, ratelimit-reset"
#: Schemes that a page may have, with the port that each implies.
_PORTS = {"http": 80, "https": 443}
#: How long a browser may believe the answer to a preflight, s.
_BELIEVED_S = 600
_VARY = ("vary", "origin")


class Application(Protocol):
    """What an HTTP server serves."""

    async def __rsgi__(self, scope: Scope, protocol: Any) -> None:
        """Answers one request."""


def origins_of(text: str) -> frozenset[str]:
    """The origins that GATEWAY_CORS_ORIGINS names, separated by commas. Raises SettingsError for what is none: an
    origin is scheme://host[:port] and nothing more, and "*" would be anybody's page."""
    origins = [each.strip() for each in text.split(",") if each.strip()]
    for each in origins:
        try:
            parts = urlsplit(each)
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"GATEWAY_CORS_ORIGINS: {each!r}: {error}") from error
        if parts.scheme not in _PORTS or each != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
            raise SettingsError(f"GATEWAY_CORS_ORIGINS: {each!r} is not scheme://host[:port]")
        # Compared as text with what browsers send: never in capitals, other than ASCII, or with a port that is implied.
        usual = each.isascii() and each == each.lower() and port != _PORTS[parts.scheme]
        if not parts.hostname or "*" in each or parts.netloc.endswith(":") or not usual:
            raise SettingsError(f"GATEWAY_CORS_ORIGINS: {each!r} is not as browsers write it")
    return frozenset(origins)


class CrossOrigin:
    """An application that pages of ``origins`` may use with a bearer token. Cookies are none of ours: credentials are
    never allowed."""

    def __init__(self, application: Application, origins: frozenset[str]) -> None:
        assert origins
        self._application = application
        self._origins = origins

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answers one request, and preflights by itself."""
        origin = scope.headers.get("origin")
        if origin not in self._origins:
            await self._application.__rsgi__(scope, _Answering(protocol, [_VARY]))
            return
        if scope.method == "OPTIONS" and "access-control-request-method" in scope.headers:
            protocol.response_empty(204, _preflight(origin))
            return
        headers = [_VARY, ("access-control-allow-origin", origin), ("access-control-expose-headers", _READ)]
        await self._application.__rsgi__(scope, _Answering(protocol, headers))


def _preflight(origin: str) -> Headers:
    return [
        _VARY,
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", _METHODS),
        ("access-control-allow-headers", _SENT),
        ("access-control-max-age", str(_BELIEVED_S)),
    ]


class _Answering:
    """A request's other side, with headers added to whatever is answered."""

    def __init__(self, protocol: HTTPProtocol, headers: Headers) -> None:
        self._protocol = protocol
        self._headers = headers

    def response_bytes(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self._protocol.response_bytes(status, [*headers, *self._headers], body)

    def response_stream(self, status: int, headers: Sequence[tuple[str, str]]) -> Any:
        return self._protocol.response_stream(status, [*headers, *self._headers])

    def client_disconnect(self) -> Any:
        return self._protocol.client_disconnect()

    def __call__(self) -> Any:
        return self._protocol()

    def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: AsyncIterator[bytes] = self._protocol.__aiter__()
        return chunks
