"""A process's own certificate and key and the authorities it trusts: PEM files, read again when they change.

Whoever renews them replaces the files, in any order; a pair that does not fit together yet, or that cannot be used, is
left alone, and the one in use stays. Nothing has to be restarted or signalled.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mesh.logs import get_logger
from mesh.settings import SettingsError

log = get_logger(__name__)

#: How old, seconds, what is known of the files may be.
LOOK_EVERY_S = 1.0

#: Device-independent marks of a file's content: inode, time of change in ns, size.
_Mark = tuple[int, int, int]


@dataclass(frozen=True)
class CertificateFiles:
    """Where they are. The authorities may be several in one file, which is how one is replaced by another; behind the
    certificate may stand intermediate ones."""

    authorities: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Identity:
    """Who a certificate says its owner is.

    ``kind`` is what rights are given to: "gateway", "settlement", "client" ...; ``name`` tells those of one kind apart
    and may be empty. Written ``spiffe://TRUST_DOMAIN/kind`` or ``.../kind/name`` in the certificate (SPIFFE-ID 2.0).
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind


@dataclass(frozen=True, eq=False)
class Material:
    """Everything for one handshake, as it was read at one moment. Equal only to itself."""

    authorities: bytes
    certificate: bytes
    #: Not in the representation, so that it reaches no log by accident.
    key: bytes = field(repr=False)
    identity: Identity
    #: Unix time.
    expires_at: float


def identity_of(uri: str, trust_domain: str) -> Identity:
    """The identity that a SPIFFE ID of our trust domain names. Raises ValueError for any other."""
    prefix = f"spiffe://{trust_domain}/"
    kind, slash, name = uri.removeprefix(prefix).partition("/")
    if not uri.startswith(prefix) or not kind or "/" in name or (slash and not name):
        raise ValueError(f"{uri!r} is not {prefix}KIND or {prefix}KIND/NAME")
    return Identity(kind, name)


def certificate_identity(certificate: x509.Certificate, trust_domain: str) -> Identity:
    """The identity of a certificate: that of its only URI. Raises ValueError if it has none, or several."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate names nobody: it has no subject alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"the certificate has {len(uris)} URIs among its names, expected 1")
    return identity_of(uris[0], trust_domain)


class Certificates:
    """The material in use. Safe to use from several threads: gRPC asks from its own during a handshake."""

    def __init__(
        self, files: CertificateFiles, trust_domain: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the files. Raises SettingsError when they cannot be used."""
        self._files, self._trust_domain, self._clock = files, trust_domain, clock
        self._lock = threading.Lock()
        self._marks = self._look()
        try:
            self._material = self._read()
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SettingsError(f"MESH_TLS_CERTIFICATE: {_reason(error)}") from error
        self._look_at = clock() + LOOK_EVERY_S

    @property
    def trust_domain(self) -> str:
        """Of whom identities are accepted."""
        return self._trust_domain

    def current(self) -> Material:
        """The newest usable material, at most a second behind the files. Looks at them now and then, which takes some
        microseconds, and a millisecond when they have changed."""
        if self._clock() >= self._look_at:
            with self._lock:
                if self._clock() >= self._look_at:
                    self._look_again()
                    self._look_at = self._clock() + LOOK_EVERY_S
        return self._material

    def _look_again(self) -> None:
        marks = self._look()
        if marks == self._marks:
            return
        try:
            material = self._read()
            if material.identity != self._material.identity:
                raise ValueError(f"the certificate is {material.identity}'s now, not {self._material.identity}'s")
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            # Told at each look, once a second at most: what is in use will expire.
            log.warning("new certificate files cannot be used", reason=_reason(error))
            return
        if self._look() != marks:
            # They were being replaced while they were read.
            return
        self._marks, self._material = marks, material
        log.info("certificate files read again", identity=str(material.identity), expires_at=material.expires_at)

    def _look(self) -> tuple[_Mark | None, ...]:
        return tuple(_mark(path) for path in (self._files.authorities, self._files.certificate, self._files.key))

    def _read(self) -> Material:
        authorities, certificate = self._files.authorities.read_bytes(), self._files.certificate.read_bytes()
        key = self._files.key.read_bytes()
        x509.load_pem_x509_certificates(authorities)
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        public = load_pem_private_key(key, None).public_key()
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if public.public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise ValueError("the key does not belong to the certificate")
        now = datetime.now(UTC)
        if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
            raise ValueError(
                f"the certificate is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc}, not now"
            )
        identity = certificate_identity(leaf, self._trust_domain)
        return Material(authorities, certificate, key, identity, leaf.not_valid_after_utc.timestamp())


def _mark(path: Path) -> _Mark | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _reason(error: Exception) -> str:
    """What is wrong, without anything that was in a file."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())[:300]
