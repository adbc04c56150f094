"""Authorities and peers of a test's own."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from mesh.certificates import CertificateFiles, Certificates
from mesh.transport import Transport
from stack.certificates import TRUST_DOMAIN, Authority, PeerFiles, issue, new_authority


class Peers:
    """An authority and those it has certified, in a folder. Their certificate files are looked at whenever they are
    asked for, not once a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = new_authority(datetime.now(UTC))
        self.trust(self.authority)

    def trust(self, *authorities: Authority) -> None:
        """Whom all trust from now on."""
        pem = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in authorities)
        (self.folder / "ca.pem").write_bytes(pem)

    def files(self, identity: str) -> PeerFiles:
        """Where the files of a peer are."""
        own = self.folder / identity
        return PeerFiles(self.folder / "ca.pem", own / "certificate.pem", own / "key.pem")

    def certify(self, identity: str, *, authority: Authority | None = None, **rest: Any) -> CertificateFiles:
        """Makes a key and a certificate, over those that there may be."""
        files = self.files(identity)
        rest.setdefault("life", timedelta(hours=1))
        issue(files, authority or self.authority, identity, datetime.now(UTC), **rest)
        return CertificateFiles(files.authorities, files.certificate, files.key)

    def certificates(self, identity: str, **rest: Any) -> Certificates:
        """What a process of this peer has."""
        moments = itertools.count(step=10)
        return Certificates(self.certify(identity, **rest), TRUST_DOMAIN, clock=lambda: next(moments))

    def transport(self, identity: str, **rest: Any) -> Transport:
        """How it talks to others."""
        return Transport(self.certificates(identity, **rest))
