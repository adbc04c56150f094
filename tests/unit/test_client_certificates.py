"""What the client makes of certificate files that change, and which connection a call then takes. No server."""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flashsale_client import Tls
from flashsale_client.certificates import LOOK_EVERY_S, Certificates, Material, _validity
from flashsale_client.rotation import Generation, Rotation

from stack.certificates import new_authority
from tests.support.certificates import Peers

READY, IDLE = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE
CONNECTING, FAILED = grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.TRANSIENT_FAILURE
NOW = 1_000_000.0


class Files:
    """A client's certificate files, and a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.peers = Peers(folder)
        self.now = 0.0
        files = self.peers.certify("client/acme")
        self.tls = Tls(files.authorities, files.certificate, files.key)
        self.certificates = Certificates(self.tls, clock=lambda: self.now)

    def later(self) -> Material:
        """What is in use a look later."""
        self.now += LOOK_EVERY_S
        return self.certificates.current()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_new_files_are_used_a_second_later_and_not_looked_at_more_often(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []
    look = files.certificates._look

    def counted() -> Any:
        looks.append(None)
        return look()

    monkeypatch.setattr(files.certificates, "_look", counted)
    before = files.certificates.current()
    files.peers.certify("client/acme")
    for _ in range(100):
        assert files.certificates.current() is before
    assert looks == []
    after = files.later()
    assert (after.certificate, after.key) == (files.tls.certificate.read_bytes(), files.tls.key.read_bytes())
    assert after.certificate != before.certificate
    looks.clear()
    assert files.later() is after
    assert len(looks) == 1


def test_new_authorities_are_used_too(files: Files) -> None:
    other = new_authority(datetime.now(UTC))
    files.peers.trust(files.peers.authority, other)
    assert files.later().authorities == files.tls.authorities.read_bytes()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


BROKEN: dict[str, Any] = {
    "half a certificate": lambda files: half(files.tls.certificate),
    "half a key": lambda files: half(files.tls.key),
    "half an authority": lambda files: half(files.tls.authorities),
    "no key": lambda files: files.tls.key.unlink(),
    "an empty certificate": lambda files: files.tls.certificate.write_bytes(b""),
    "another's key": lambda files: os.replace(files.peers.certify("client/other").key, files.tls.key),
    "an expired certificate": lambda files: files.peers.certify("client/acme", life=timedelta(seconds=-1)),
    "bytes that are no text": lambda files: files.tls.certificate.write_bytes(bytes(range(256))),
    "a certificate that is none": lambda files: files.tls.certificate.write_text(
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_files_that_cannot_be_used_change_nothing_and_are_told_of_once(
    files: Files, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = files.certificates.current()
    secret = before.key.splitlines()[1].decode()
    BROKEN[what](files)
    with caplog.at_level(logging.INFO, "flashsale_client"):
        for _ in range(5):
            assert files.later() is before
        (told,) = caplog.records
        assert told.levelno == logging.WARNING
        assert "old ones stay in use" in told.getMessage()
        assert secret not in told.getMessage()
        caplog.clear()
        # Once they are whole they are used.
        files.peers.trust(files.peers.authority)
        files.peers.certify("client/acme")
        assert files.later().certificate == files.tls.certificate.read_bytes()
        assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_a_client_does_not_begin_with_files_that_cannot_be_used(files: Files) -> None:
    half(files.tls.key)
    with pytest.raises(ValueError, match="the certificate files cannot be used"):
        Certificates(files.tls)
    files.tls.key.unlink()
    with pytest.raises(ValueError, match=r"key\.pem: No such file"):
        Certificates(files.tls)


def test_files_that_change_while_they_are_read_wait_for_the_next_look(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = files.certificates.current(), files.certificates._read

    def meanwhile() -> Material:
        material = read()
        files.peers.certify("client/acme")
        return material

    files.peers.certify("client/acme")
    monkeypatch.setattr(files.certificates, "_read", meanwhile)
    assert files.later() is before
    monkeypatch.setattr(files.certificates, "_read", read)
    assert files.later().certificate == files.tls.certificate.read_bytes()


@pytest.mark.parametrize("life", [timedelta(hours=1), timedelta(days=365 * 40)], ids=["to 2049", "from 2050"])
def test_dates_are_read_as_they_are_written(files: Files, life: timedelta) -> None:
    pem = files.peers.certify("client/acme", life=life).certificate.read_bytes()
    expected = x509.load_pem_x509_certificate(pem)
    der = expected.public_bytes(Encoding.DER)
    dates = expected.not_valid_before_utc, expected.not_valid_after_utc
    assert _validity(der) == tuple(each.timestamp() for each in dates)
    for length in range(len(der)):
        with pytest.raises(ValueError, match="certificate"):
            _validity(der[:length])


def generation(state: grpc.ChannelConnectivity | None, *, left_s: float = 3600.0) -> Generation[Any]:
    material = Material(b"", b"", b"", NOW + left_s)
    made: Generation[Any] = Generation(material, object())
    if state is not None:
        made.saw(state)
    return made


@pytest.mark.parametrize(
    ("now", "left_s", "following", "refused", "goes"),
    [
        # It waits until the new one is connected, while the old one serves.
        (READY, 3600, IDLE, False, False),
        (READY, 3600, CONNECTING, False, False),
        (READY, 3600, FAILED, True, False),
        (READY, 3600, READY, False, True),
        (READY, 3600, READY, True, True),
        # So it does while it is not known whether the old one is still connected.
        (None, 3600, CONNECTING, False, False),
        # A certificate that is about to expire is left in time; if nobody trusts the new one, at its end.
        (READY, 59, CONNECTING, False, True),
        (READY, 61, CONNECTING, False, False),
        (READY, 59, FAILED, True, False),
        (READY, -1, FAILED, True, True),
        # Without a connection the next one is the new certificate's, unless nobody trusts that.
        (IDLE, 3600, IDLE, False, True),
        (FAILED, 3600, CONNECTING, False, True),
        (FAILED, 3600, FAILED, True, False),
        (FAILED, 3600, CONNECTING, True, False),
    ],
)
def test_when_calls_go_over(
    now: grpc.ChannelConnectivity | None, left_s: float, following: grpc.ChannelConnectivity, refused: bool, goes: bool
) -> None:
    first, second = generation(now, left_s=left_s), generation(following)
    second.refused = refused
    rotation: Rotation[Any] = Rotation(first)
    rotation.begin(second)
    assert rotation.settle(NOW) == ([first] if goes else [])
    assert rotation.now is (second if goes else first)


def test_what_is_needed_no_more_is_given_up_and_nothing_else() -> None:
    first, wrong, second = generation(READY), generation(CONNECTING), generation(READY)
    rotation: Rotation[Any] = Rotation(first)
    assert rotation.begin(wrong) == []
    assert rotation.begin(second) == [wrong]
    first.under_way = 2
    assert rotation.settle(NOW) == []
    assert rotation.ended(first) == []
    assert rotation.ended(first) == [first]
    second.under_way = 1
    assert rotation.ended(second) == []
    assert rotation.end() == [second]
