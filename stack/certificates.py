"""A small certificate authority for one machine, and a certificate for every kind of peer.

For the local stack and for tests. In production certificates come from the company's own authority, or from SPIRE,
cert-manager or Vault; docs/security.md says what has to be in them. Everything is below ``certificates/`` of the stack
folder, keys readable by their owner only:

    ca.pem  ca-key.pem  balance/certificate.pem  balance/key.pem  client/local/certificate.pem ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stack.errors import StackError
from stack.folder import own_file

TRUST_DOMAIN = "flashsale"
#: Those who serve gRPC: their certificates are good for both ends of a connection.
SERVING = ("inventory", "balance", "purchase", "settlement")
#: Those who only call. The three last are for people and tests on this machine.
CALLING = ("gateway", "operator", "treasury/local", "client/local")
IDENTITIES = (*SERVING, *CALLING)

_AUTHORITY_LIFE = timedelta(days=3650)
_LIFE = timedelta(days=90)
#: One that has less than this to live is made anew.
_RENEW_BEFORE = timedelta(days=30)
#: Clocks of a mesh differ, and tests set some wrong by an hour.
_BACKDATED = timedelta(days=1)


@dataclass(frozen=True)
class PeerFiles:
    """The files of one peer."""

    authorities: Path
    certificate: Path
    key: Path

    def settings(self) -> dict[str, str]:
        """The environment variables by which a process is told of them."""
        return {
            "MESH_TLS_CA": str(self.authorities),
            "MESH_TLS_CERTIFICATE": str(self.certificate),
            "MESH_TLS_KEY": str(self.key),
        }


#: What ``PeerFiles.settings`` sets.
SETTINGS = frozenset(PeerFiles(Path(), Path(), Path()).settings())


def files_of(folder: Path, identity: str) -> PeerFiles:
    """Where the files of a peer are. Raises StackError for one that has none."""
    if identity not in IDENTITIES:
        raise StackError(f"there is no certificate for {identity!r}: there is one for {', '.join(IDENTITIES)}")
    own = folder / identity
    return PeerFiles(folder / "ca.pem", own / "certificate.pem", own / "key.pem")


def ensure(folder: Path, *, renew: bool = False, now: datetime | None = None) -> list[str]:
    """Makes the authority and the certificates that are missing, unusable or near their end, or with ``renew`` all
    certificates; the identities that got one. Processes that run use it within a second or so.

    The authority stays until it cannot outlive the certificates it makes; the next one is trusted beside it.
    """
    now = now or datetime.now(UTC)
    folder.mkdir(mode=0o700, exist_ok=True)
    authority = _authority(folder, now)
    made = []
    for identity in IDENTITIES:
        if renew or not _is_good(files_of(folder, identity), authority, now):
            issue(files_of(folder, identity), authority, identity, now)
            made.append(identity)
    return made


@dataclass(frozen=True)
class Authority:
    """Signs."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def new_authority(now: datetime) -> Authority:
    """One that nobody knows yet."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Told apart by the time, for two with one name and different keys confuse whoever searches an issuer by its name.
    name = _name(f"flashsale local authority {now:%Y-%m-%d %H:%M:%S.%f}")
    builder = _builder(key.public_key(), name, name, now, _AUTHORITY_LIFE)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def issue(
    files: PeerFiles,
    authority: Authority,
    identity: str,
    now: datetime,
    *,
    life: timedelta = _LIFE,
    uris: Sequence[str] | None = None,
) -> None:
    """Makes a key and a certificate for it and puts both where they belong. ``uris`` are the SPIFFE IDs in it, by
    default that of ``identity`` alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(uri) for uri in uris or [f"spiffe://{TRUST_DOMAIN}/{identity}"]
    ]
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity in SERVING:
        # By the first a caller knows that it has reached this kind of service and no other.
        names.append(x509.DNSName(f"{identity}.{TRUST_DOMAIN}"))
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = _builder(key.public_key(), _name(identity), authority.certificate.subject, now, life)
    issuer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer.value), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    files.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A reader that meets the new key beside the old certificate keeps what it has until both are there.
    own_file(files.key, _pem(key))
    own_file(files.certificate, certificate.public_bytes(Encoding.PEM).decode())


def _authority(folder: Path, now: datetime) -> Authority:
    certificate_file, key_file = folder / "ca.pem", folder / "ca-key.pem"
    before = b""
    if certificate_file.exists() and key_file.exists():
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StackError(f"{key_file} is no key of ours: remove {folder} and run make certs")
        # The two may differ where the last attempt to make them was cut short.
        if certificate.not_valid_after_utc - now > _LIFE and _fit(key, certificate):
            return Authority(key, certificate)
        # Trusted beside the new one, until those who run have certificates of that.
        before = certificate.public_bytes(Encoding.PEM)
    authority = new_authority(now)
    own_file(key_file, _pem(authority.key))
    own_file(certificate_file, (authority.certificate.public_bytes(Encoding.PEM) + before).decode())
    return authority


def _is_good(files: PeerFiles, authority: Authority, now: datetime) -> bool:
    """Whether there is a certificate of this authority with enough of its life left, and the key that belongs to it."""
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = load_pem_private_key(files.key.read_bytes(), None)
        certificate.verify_directly_issued_by(authority.certificate)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    in_time = certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - _RENEW_BEFORE
    return in_time and _fit(key, certificate)


def _fit(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
