"""Certificate files are read again when they change, and what cannot be used never takes the place of what can."""

from datetime import timedelta
from pathlib import Path

import pytest

from mesh.certificates import Certificates, Identity, identity_of
from mesh.settings import SettingsError
from mesh.transport import read_transport
from stack.certificates import TRUST_DOMAIN
from tests.support.certificates import Peers


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    return Peers(tmp_path)


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("spiffe://flashsale/gateway", Identity("gateway")),
        ("spiffe://flashsale/client/acme", Identity("client", "acme")),
    ],
)
def test_an_identity_is_a_kind_and_perhaps_a_name(uri: str, identity: Identity) -> None:
    assert identity_of(uri, TRUST_DOMAIN) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://elsewhere/gateway",
        "spiffe://flashsale.evil/gateway",
        "spiffe://flashsale/",
        "spiffe://flashsale/client/",
        "spiffe://flashsale//settlement",
        "spiffe://flashsale/client/acme/settlement",
        "https://flashsale/gateway",
        "",
    ],
)
def test_nothing_else_is_one(uri: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://flashsale/"):
        identity_of(uri, TRUST_DOMAIN)


def test_new_files_are_used_without_a_restart(peers: Peers) -> None:
    certificates = peers.certificates("inventory")
    before = certificates.current()
    assert certificates.current() is before
    peers.certify("inventory")
    after = certificates.current()
    assert after.certificate != before.certificate
    assert after.key != before.key


def test_files_are_looked_at_once_a_second_and_no_oftener(peers: Peers) -> None:
    now = [100.0]
    certificates = Certificates(peers.certify("inventory"), TRUST_DOMAIN, clock=lambda: now[0])
    before = certificates.current()
    peers.certify("inventory")
    now[0] += 0.9
    assert certificates.current() is before
    now[0] += 0.2
    assert certificates.current() is not before


def test_a_pair_that_is_half_replaced_is_left_alone_until_it_fits(peers: Peers) -> None:
    certificates = peers.certificates("inventory")
    before, old = certificates.current(), peers.files("inventory").certificate.read_bytes()
    files = peers.certify("inventory")
    new = files.certificate.read_bytes()
    files.certificate.write_bytes(old)
    assert certificates.current() is before
    files.certificate.write_bytes(new)
    assert certificates.current().certificate == new


@pytest.mark.parametrize("what", ["expired", "another's", "of two", "no certificate", "gone"])
def test_what_cannot_be_used_does_not_take_the_place_of_what_can(peers: Peers, what: str) -> None:
    certificates = peers.certificates("inventory")
    before, files = certificates.current(), peers.files("inventory")
    match what:
        case "expired":
            peers.certify("inventory", life=timedelta(seconds=-1))
        case "another's":
            peers.certify("inventory", uris=["spiffe://flashsale/settlement"])
        case "of two":
            peers.certify("inventory", uris=["spiffe://flashsale/inventory", "spiffe://flashsale/settlement"])
        case "no certificate":
            files.certificate.write_text("nonsense")
        case "gone":
            files.certificate.unlink()
    assert certificates.current() is before
    peers.certify("inventory")
    assert certificates.current() is not before


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("expired", "valid from .* not now"),
        ("another domain", "is not spiffe://flashsale/"),
        ("another key", "does not belong to the certificate"),
        ("gone", "No such file"),
    ],
)
def test_a_process_does_not_start_with_what_it_cannot_use(peers: Peers, what: str, complaint: str) -> None:
    files = peers.certify("inventory")
    match what:
        case "expired":
            peers.certify("inventory", life=timedelta(seconds=-1))
        case "another domain":
            peers.certify("inventory", uris=["spiffe://elsewhere/inventory"])
        case "another key":
            files.key.write_bytes(peers.certify("balance").key.read_bytes())
        case "gone":
            files.key.unlink()
    with pytest.raises(SettingsError, match=f"MESH_TLS_CERTIFICATE: .*{complaint}"):
        Certificates(files, TRUST_DOMAIN)


def test_a_missing_path_does_not_mean_plaintext(peers: Peers) -> None:
    told = peers.files("inventory").settings()
    peers.certify("inventory")
    assert read_transport(told).certificates is not None
    assert read_transport({}).certificates is None
    for name in told:
        with pytest.raises(SettingsError, match="set all three or none"):
            read_transport({each: path for each, path in told.items() if each != name})


def test_no_representation_shows_the_key(peers: Peers) -> None:
    material = peers.certificates("inventory").current()
    assert b"PRIVATE KEY" in material.key
    assert "PRIVATE" not in repr(material)
    assert material.key.decode().splitlines()[1] not in repr(material)
