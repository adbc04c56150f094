"""The certificate a client shows and the authorities it believes: PEM files, read again when they change.

Whoever renews them replaces the files, in any order. What cannot be used, or does not fit together yet, is left alone
and told of once in the log; what is in use stays. With the standard library alone: an application has its own version
of whatever else could read a certificate.
"""

import base64
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc

from flashsale_client.connection import Tls

log = logging.getLogger("flashsale_client")

#: How old, seconds, what is known of the files may be.
LOOK_EVERY_S = 1.0

#: Marks of a file's content: inode, time of change in ns, size.
_Mark = tuple[int, int, int]
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.S)
#: Tags of DER (X.690) that are looked for on the way to a certificate's dates (RFC 5280, section 4.1).
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


@dataclass(frozen=True, eq=False)
class Material:
    """Everything for one handshake, as it was read at one moment. Equal only to itself."""

    authorities: bytes
    certificate: bytes
    #: Not in the representation, so that it reaches no log by accident.
    key: bytes = field(repr=False)
    #: Unix time.
    expires_at: float

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them."""
        return grpc.ssl_channel_credentials(self.authorities, self.key, self.certificate)


class Certificates:
    """The material in use. Safe to use from several threads."""

    def __init__(self, tls: Tls, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the files. Raises ValueError when they cannot be used."""
        self._tls, self._clock = tls, clock
        self._lock = threading.Lock()
        self._marks = self._look()
        self._complained: object = None
        try:
            self._material = self._read()
        except (OSError, ValueError) as error:
            raise ValueError(f"the certificate files cannot be used: {_reason(error)}") from error
        self._look_at = clock() + LOOK_EVERY_S

    def current(self) -> Material:
        """The newest usable material, at most a second behind the files when it is asked for. Looks at them once a
        second at most, which takes some microseconds, and a millisecond when they have changed."""
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
        except (OSError, ValueError) as error:
            # Tried again at each look, for what is not valid yet may be by then; told once.
            if self._look() == marks and (marks, _reason(error)) != self._complained:
                self._complained = marks, _reason(error)
                log.warning("new certificate files cannot be used, the old ones stay in use: %s", _reason(error))
            return
        if self._look() != marks:
            # They were being replaced while they were read.
            return
        self._marks, self._material = marks, material
        log.info("certificate files read again, valid until %s", datetime.fromtimestamp(material.expires_at, UTC))

    def _look(self) -> tuple[_Mark | None, ...]:
        return tuple(_mark(path) for path in (self._tls.authorities, self._tls.certificate, self._tls.key))

    def _read(self) -> Material:
        tls = self._tls
        authorities, certificate, key = (path.read_bytes() for path in (tls.authorities, tls.certificate, tls.key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Both raise ssl.SSLError, an OSError. A key with a passphrase is refused instead of asked for.
        context.load_verify_locations(cadata=b"".join(_certificates(authorities)))
        context.load_cert_chain(tls.certificate, tls.key, password="")
        begins_at, expires_at = _validity(_certificates(certificate)[0])
        if not begins_at <= time.time() < expires_at:
            dates = [f"{datetime.fromtimestamp(each, UTC):%Y-%m-%d %H:%M:%S}" for each in (begins_at, expires_at)]
            raise ValueError(f"the certificate is valid from {dates[0]} to {dates[1]} UTC, not now")
        return Material(authorities, certificate, key, expires_at)


def _mark(path: Path) -> _Mark | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _reason(error: Exception) -> str:
    """What is wrong, without anything that was in a file."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())[:300]


def _certificates(pem: bytes) -> list[bytes]:
    """Those of a PEM file, in DER. Raises ValueError if there are none."""
    found = [base64.b64decode(each) for each in _CERTIFICATE.findall(pem)]
    if not found:
        raise ValueError("a file without a certificate")
    return found


def _validity(der: bytes) -> tuple[float, float]:
    """From when until when, Unix time, a certificate is valid. Raises ValueError if that cannot be read."""
    try:
        _, at, _ = _element(der, 0, _SEQUENCE)
        _, at, _ = _element(der, at, _SEQUENCE)
        tag, _, end = _element(der, at)
        # Serial number, algorithm, issuer; the version before them may be left out.
        for _ in range(3 if tag == _VERSION else 2):
            _, _, end = _element(der, end)
        _, at, _ = _element(der, end, _SEQUENCE)
        begins_at, at = _time(der, at)
        return begins_at, _time(der, at)[0]
    except IndexError:
        raise ValueError("the certificate ends too soon") from None


def _element(der: bytes, at: int, expected: int | None = None) -> tuple[int, int, int]:
    """The element of DER that begins at ``at``: its tag, where its content begins, and where it ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(der[start : start + count]), start + count
    if expected not in (None, tag) or start + length > len(der):
        raise ValueError("the certificate is not as it should be")
    return tag, start, start + length


def _time(der: bytes, at: int) -> tuple[float, int]:
    """The time at ``at``, Unix time, and where it ends."""
    tag, start, end = _element(der, at)
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("the certificate is not as it should be")
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        # Two digits of the year: 1950 to 2049.
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp(), end
