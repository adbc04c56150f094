"""How commands, benchmarks and tests on this machine call the services of a stack: with the certificate of whoever
may make the call.

A stack's owner holds all of its keys, so here one process can be operator, treasury and client at once. Nobody can be
that in production, where each has one certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc

from mesh.certificates import CertificateFiles, Certificates
from mesh.transport import PLAINTEXT, Transport, channel_credentials, tls_options
from stack.certificates import TRUST_DOMAIN, PeerFiles, files_of
from stack.folder import StackFolder

#: Who calls what is no operator's.
_METHODS = {
    "treasury/local": ("BatchCreateAccounts", "BatchDeposit", "CreateAccount", "Deposit", "Withdraw"),
    "client/local": ("CreatePurchase", "BatchCreatePurchases", "CancelPurchase", "RefundPurchase"),
    "purchase": ("BatchReserveShares", "BatchLeaveWaitlist"),
    "settlement": (
        "BatchConfirmReservations",
        "BatchReleaseReservations",
        "ListWaitlistOutcomes",
        "BatchAcknowledgeWaitlistOutcomes",
        "BatchPlaceHolds",
        "BatchCaptureHolds",
        "BatchReleaseHolds",
        "ReverseCapture",
        "BatchReverseCaptures",
    ),
}
_IDENTITIES = {method: identity for identity, methods in _METHODS.items() for method in methods}


def identity_for(method: str) -> str:
    """As whom a method (with or without its service before a slash) is called here."""
    return _IDENTITIES.get(method.rpartition("/")[2], "operator")


def peer_files(environment: Mapping[str, str], identity: str) -> PeerFiles | None:
    """The files of a peer of the stack with this environment; None where it runs in the clear."""
    if "MESH_TLS_CERTIFICATE" not in environment:
        return None
    return files_of(StackFolder(Path(environment["STACK_DIR"])).certificates, identity)


def transport_as(files: PeerFiles | None) -> Transport:
    """The transport of a process that is this peer."""
    if files is None:
        return PLAINTEXT
    return Transport(Certificates(CertificateFiles(files.authorities, files.certificate, files.key), TRUST_DOMAIN))


def open_as(
    files: PeerFiles | None, service: str, target: str, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel to a kind of service as this peer; its certificate stays the same for as long as the channel lives."""
    if files is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials, told = _secure(files, service, options)
    return grpc.aio.secure_channel(target, credentials, options=told)


def open_blocking_as(
    files: PeerFiles | None, service: str, target: str, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """The same for callers without an event loop."""
    if files is None:
        return grpc.insecure_channel(target, options)
    credentials, told = _secure(files, service, options)
    return grpc.secure_channel(target, credentials, told)


def _secure(
    files: PeerFiles, service: str, options: Sequence[tuple[str, Any]]
) -> tuple[grpc.ChannelCredentials, list[tuple[str, Any]]]:
    read = CertificateFiles(files.authorities, files.certificate, files.key)
    material = Certificates(read, TRUST_DOMAIN).current()
    return channel_credentials(material), [*options, *tls_options(service, TRUST_DOMAIN)]


def open_peer_channel(
    environment: Mapping[str, str], service: str, target: str = "", options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel to a kind of service of a stack, by default to all of its replicas, on which each method is called as
    whoever may call it."""
    target = target or environment[f"{service.upper()}_TARGET"]
    if peer_files(environment, "operator") is None:
        return open_as(None, service, target, options)
    # Not derived from the class: that would mean to pass on by hand what no stub of ours uses.
    return cast("grpc.aio.Channel", _EverybodysChannel(environment, service, target, options))


class _EverybodysChannel:
    """Has what generated stubs need of a channel, and opens one for each identity that is needed."""

    def __init__(
        self, environment: Mapping[str, str], service: str, target: str, options: Sequence[tuple[str, Any]]
    ) -> None:
        self._environment, self._service, self._target, self._options = environment, service, target, options
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _as(self, identity: str) -> grpc.aio.Channel:
        if identity not in self._channels:
            files = peer_files(self._environment, identity)
            self._channels[identity] = open_as(files, self._service, self._target, self._options)
        return self._channels[identity]

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As grpc.aio.Channel. Connects at the first call."""
        return self._as(identity_for(method)).unary_unary(method, *arguments, **options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As grpc.aio.Channel."""
        return self._as(identity_for(method)).unary_stream(method, *arguments, **options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """As grpc.aio.Channel. Of what services offer only reflection is such a method."""
        return self._as(identity_for(method)).stream_stream(method, *arguments, **options)

    async def __aenter__(self) -> _EverybodysChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel."""
        for channel in self._channels.values():
            await channel.close(grace)
