"""How a process talks to the others of the mesh: by mutual TLS, or in the clear on loopback."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc

from mesh.certificates import CertificateFiles, Certificates, Material
from mesh.loopback import require_local
from mesh.metrics import Metrics
from mesh.rotating_channel import RotatingChannel
from mesh.settings import SettingsError, read_settings, setting


@dataclass(frozen=True)
class TransportSettings:
    """MESH_* settings of every process."""

    tls_ca: str = setting("PEM file of the certificate authorities whose peers are trusted", default="")
    tls_certificate: str = setting("PEM file of this process's certificate", default="")
    tls_key: str = setting("PEM file of its private key", default="")
    tls_trust_domain: str = setting("trust domain of every peer's SPIFFE ID", default="flashsale")
    allow_plaintext: bool = setting("without TLS listen on and call more than loopback", default=False)

    def __post_init__(self) -> None:
        """Checks the rule that spans fields: a name that is missing must not mean plaintext."""
        given = [bool(path) for path in (self.tls_ca, self.tls_certificate, self.tls_key)]
        if any(given) and not all(given):
            raise SettingsError("MESH_TLS_CA, MESH_TLS_CERTIFICATE, MESH_TLS_KEY: set all three or none")


class Transport:
    """Makes the listening ports and the channels of one process.

    With certificates every peer must show one of our authorities, in both directions; what is renewed is used from the
    next handshake on. Without, only loopback is listened on and called, unless ``allow_plaintext``, which certificates
    do not heed: with them nothing of gRPC is in the clear.
    """

    def __init__(self, certificates: Certificates | None = None, *, allow_plaintext: bool = False) -> None:
        self.certificates = certificates
        self.allow_plaintext = allow_plaintext

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Lets a server listen; the port. Raises SettingsError when it cannot, or may not."""
        certificates = self.certificates
        if certificates is None:
            require_local("listen", address, allowed=self.allow_plaintext)
        try:
            if certificates is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, _server_credentials(certificates))
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {address}: {error}") from error

    def channel(self, target: str, service: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel to a kind of service. With certificates the other side must prove to be that kind, whatever its
        address: it shows a certificate for the DNS name ``service.TRUST_DOMAIN``. Raises SettingsError for a target
        that may not be called in the clear.
        """
        if self.certificates is None:
            require_local("target", target, allowed=self.allow_plaintext)
            return grpc.aio.insecure_channel(target, options=options)
        told = [*options, *tls_options(service, self.certificates.trust_domain)]

        def open_(material: Material) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(target, channel_credentials(material), options=told)

        # Not derived from the class: that would mean to pass on by hand what no stub of ours uses.
        return cast("grpc.aio.Channel", RotatingChannel(self.certificates, open_))


#: In the clear, on loopback.
PLAINTEXT = Transport()


def read_transport(env: Mapping[str, str] = os.environ) -> Transport:
    """The transport that MESH_* variables ask for. Raises SettingsError, also for certificates that cannot be used."""
    settings = read_settings(TransportSettings, "MESH_", env)
    if not settings.tls_certificate:
        return Transport(allow_plaintext=settings.allow_plaintext)
    files = CertificateFiles(Path(settings.tls_ca), Path(settings.tls_certificate), Path(settings.tls_key))
    return Transport(Certificates(files, settings.tls_trust_domain), allow_plaintext=settings.allow_plaintext)


def show_expiry(transport: Transport, metrics: Metrics) -> None:
    """Shows when the certificate in use expires: renewal that has stopped working is seen long before it matters."""
    certificates = transport.certificates
    if certificates is not None:
        metrics.gauge(
            "flashsale_certificate_expiry_timestamp_seconds",
            "Unix time at which this process's certificate expires",
            lambda: certificates.current().expires_at,
        )


def tls_options(service: str, trust_domain: str) -> list[tuple[str, Any]]:
    """Channel options by which the other side must be that kind of service."""
    return [
        ("grpc.ssl_target_name_override", f"{service}.{trust_domain}"),
        # Connections are shared by channels of one process with equal options: never one that was made with an older
        # certificate by one that is to use the newer.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def channel_credentials(material: Material) -> grpc.ChannelCredentials:
    """Credentials of a channel."""
    return grpc.ssl_channel_credentials(material.authorities, material.key, material.certificate)


def _server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    def configuration(material: Material) -> grpc.ServerCertificateConfiguration:
        pair = (material.key, material.certificate)
        return grpc.ssl_server_certificate_configuration([pair], material.authorities)

    in_use = certificates.current()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        # Asked by gRPC before each handshake, in a thread of its own.
        nonlocal in_use
        material = certificates.current()
        if material is in_use:
            return None
        made = configuration(material)
        in_use = material
        return made

    return grpc.dynamic_ssl_server_credentials(
        configuration(in_use),
        newer,  # type: ignore[arg-type]  # None means no change, which the stubs do not know
        require_client_authentication=True,
    )
