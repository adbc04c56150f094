"""Who may call what: each method has a list of kinds of peers, and a peer's kind is what its certificate says.

A method without a list may be called by nobody. Health and reflection are no part of it: every peer with a certificate
of our authorities may ask them (mesh.interceptors leaves them out).
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh.certificates import Identity, identity_of
from mesh.errors import DomainError
from mesh.interceptors import Handler
from mesh.logs import get_logger
from mesh.metrics import Counts

log = get_logger(__name__)

#: Full name of a method without a slash before it -> kinds of peers that may call it.
AllowList = Mapping[str, frozenset[str]]

#: Certificates remembered, so that each is parsed once and not at each call.
_KNOWN_MAX = 1_000
#: Refusals that were logged, so that somebody who repeats one does not fill the log; all are counted.
_TOLD_MAX = 1_000


def allow_list(service: str, methods: Mapping[str, str]) -> AllowList:
    """The list of one service, from kinds written as words: {"GetSale": "gateway operator"}."""
    return {f"{service}/{method}": frozenset(kinds.split()) for method, kinds in methods.items()}


@dataclass(frozen=True)
class Caller:
    """The peer of a connection, and until when (Unix time) its certificate is good."""

    identity: Identity
    expires_at: float


class CallersLayer:
    """Refuses calls of peers that may not make them: PERMISSION_DENIED; UNAUTHENTICATED for a certificate that names
    nobody of our trust domain, or that has expired since the connection was made, in the middle of a stream too.

    ``refused`` counts by (method, kind of peer).
    """

    def __init__(
        self, allowed: AllowList, trust_domain: str, refused: Counts, *, now: Callable[[], float] = time.time
    ) -> None:
        self._allowed, self._trust_domain, self._refused, self._now = allowed, trust_domain, refused, now
        self._known: dict[bytes, Caller] = {}
        self._told: set[tuple[str, str]] = set()

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, behind the check."""
        name = method.removeprefix("/")
        require = self._require
        if handler.unary_unary is not None:
            inner = handler.unary_unary

            async def unary(request: Any, context: Any) -> Any:
                require(name, context)
                return await inner(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
        if handler.unary_stream is not None:
            stream = handler.unary_stream

            async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
                caller = require(name, context)
                async for response in stream(request, context):  # type: ignore[attr-defined]
                    if self._now() >= caller.expires_at:
                        raise self._expired(name, caller.identity)
                    yield response

            return grpc.unary_stream_rpc_method_handler(
                streaming, handler.request_deserializer, handler.response_serializer
            )
        # None of ours streams requests; what is not checked is not served.
        raise TypeError(f"{name}: no check for streams of requests")

    def _require(self, method: str, context: Any) -> Caller:
        caller = self._caller(method, context)
        if caller.expires_at <= self._now():
            raise self._expired(method, caller.identity)
        if caller.identity.kind not in self._allowed.get(method, ()):
            self._note(method, caller.identity.kind, str(caller.identity))
            raise DomainError(
                ErrorReason.ERROR_REASON_PERMISSION_DENIED, f"{caller.identity} may not call {method.partition('/')[2]}"
            )
        return caller

    def _caller(self, method: str, context: Any) -> Caller:
        # gRPC has verified the certificate in the handshake; what is left is to read it.
        peer = context.auth_context()
        pem = (peer.get("x509_pem_cert") or (b"",))[0]
        known = self._known.get(pem)
        if known is not None:
            return known
        try:
            # There only if the certificate has exactly one URI, and that is a SPIFFE ID.
            identity = identity_of(peer["peer_spiffe_id"][0].decode(), self._trust_domain)
            expires_at = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
        except (KeyError, ValueError) as error:
            self._note(method, "unknown", "unknown")
            raise DomainError(
                ErrorReason.ERROR_REASON_UNAUTHENTICATED,
                f"the peer's certificate has no identity spiffe://{self._trust_domain}/KIND",
            ) from error
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        caller = self._known[pem] = Caller(identity, expires_at)
        return caller

    def _expired(self, method: str, identity: Identity) -> DomainError:
        self._note(method, identity.kind, str(identity))
        return DomainError(ErrorReason.ERROR_REASON_UNAUTHENTICATED, "the peer's certificate has expired")

    def _note(self, method: str, kind: str, who: str) -> None:
        self._refused.add((method, kind))
        if (method, who) not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add((method, who))
            log.warning("a peer was refused", method=method, peer=who)
