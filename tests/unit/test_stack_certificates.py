"""The local authority makes what is missing, renews in time, and leaves the rest alone."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.certificates import certificate_identity
from stack.certificates import CALLING, IDENTITIES, SERVING, TRUST_DOMAIN, ensure, files_of
from stack.errors import StackError

NOW = datetime.now(UTC)


def certificate(folder: Path, identity: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files_of(folder, identity).certificate.read_bytes())


def authorities(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())


def test_it_makes_one_for_everybody_and_then_nothing_more(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    assert ensure(folder) == list(IDENTITIES)
    assert ensure(folder) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for identity in IDENTITIES:
        made = certificate(folder, identity)
        made.verify_directly_issued_by(authorities(folder)[0])
        assert str(certificate_identity(made, TRUST_DOMAIN)) == identity
        assert stat.S_IMODE(files_of(folder, identity).key.stat().st_mode) == 0o600


def test_only_services_can_serve(tmp_path: Path) -> None:
    ensure(tmp_path)
    for identity in IDENTITIES:
        extensions = certificate(tmp_path, identity).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        serves = ExtendedKeyUsageOID.SERVER_AUTH in usage
        assert serves == (identity in SERVING) != (identity in CALLING)
        dns = [f"{identity}.flashsale"] if serves else []
        assert names.get_values_for_type(x509.DNSName) == dns


def test_what_is_missing_or_does_not_fit_is_made_anew_and_nothing_else(tmp_path: Path) -> None:
    ensure(tmp_path)
    files_of(tmp_path, "gateway").certificate.unlink()
    key = files_of(tmp_path, "balance").key
    key.write_bytes(files_of(tmp_path, "inventory").key.read_bytes())
    assert ensure(tmp_path) == ["balance", "gateway"]
    assert ensure(tmp_path) == []


def test_certificates_are_renewed_a_month_before_their_end(tmp_path: Path) -> None:
    ensure(tmp_path, now=NOW)
    assert ensure(tmp_path, now=NOW + timedelta(days=59)) == []
    assert ensure(tmp_path, now=NOW + timedelta(days=61)) == list(IDENTITIES)
    assert len(authorities(tmp_path)) == 1


def test_asked_to_it_renews_all_under_the_same_authority(tmp_path: Path) -> None:
    ensure(tmp_path)
    before, authority = certificate(tmp_path, "gateway").serial_number, authorities(tmp_path)
    assert ensure(tmp_path, renew=True) == list(IDENTITIES)
    assert certificate(tmp_path, "gateway").serial_number != before
    assert authorities(tmp_path) == authority


def test_an_authority_near_its_end_is_followed_by_one_that_is_trusted_beside_it(tmp_path: Path) -> None:
    ensure(tmp_path, now=NOW)
    old = authorities(tmp_path)
    assert ensure(tmp_path, now=NOW + timedelta(days=3600)) == list(IDENTITIES)
    new, still = authorities(tmp_path)
    assert [still] == old
    certificate(tmp_path, "balance").verify_directly_issued_by(new)


def test_an_authority_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    ensure(tmp_path / "other")
    ensure(tmp_path)
    (tmp_path / "ca-key.pem").write_bytes((tmp_path / "other" / "ca-key.pem").read_bytes())
    assert ensure(tmp_path) == list(IDENTITIES)
    assert ensure(tmp_path) == []
    certificate(tmp_path, "balance").verify_directly_issued_by(authorities(tmp_path)[0])


def test_nobody_else_has_one(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no certificate for"):
        files_of(tmp_path, "../ca")
