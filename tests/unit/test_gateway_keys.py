"""Tokens that are checked by public keys: which keys, which algorithms, and how keys come and go while it runs."""

import asyncio
import base64
import hmac
import http.server
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from gateway import key_source
from gateway.key_source import KeySource, read_file, read_url, why_not_url
from gateway.local_tokens import issue
from gateway.settings import Settings
from gateway.token_setup import set_up_tokens
from gateway.tokens import TokenChecker
from gateway.verification_keys import UnknownKeyError, VerificationKeys, read_key_set
from mesh.errors import DomainError
from mesh.metrics import Metrics
from mesh.settings import SettingsError
from tests.support.certificates import Peers
from tests.support.waiting import eventually

NOW = time.time()
CLAIMS: dict[str, Any] = {"iss": "flashsale", "aud": "flashsale", "sub": "alice", "exp": int(NOW) + 86_400}
SETTINGS: dict[str, Any] = {"purchase_target": "x:1", "inventory_target": "x:1", "balance_target": "x:1"}

# Made once: an RSA key takes a tenth of a second.
ED, OTHER_ED = (OKPKey.generate_key("Ed25519", auto_kid=True) for _ in range(2))
EC, RSA = ECKey.generate_key("P-256", auto_kid=True), RSAKey.generate_key(2048, auto_kid=True)


def public(key: Key, **changes: Any) -> dict[str, Any]:
    """A key as a set has it."""
    return {**key.as_dict(private=False), **changes}


def key_set(*keys: Key | dict[str, Any]) -> bytes:
    return json.dumps({"keys": [key if isinstance(key, dict) else public(key) for key in keys]}).encode()


def token(key: Key, algorithm: str, *, kid: str | None = "", **changes: Any) -> str:
    """A token signed by ``key``, which it names unless told otherwise."""
    named = key.kid if kid == "" else kid
    header = {"alg": algorithm} | ({} if named is None else {"kid": named})
    return jwt.encode(header, CLAIMS | changes, key, algorithms=[algorithm])


def checker(*keys: Key | dict[str, Any]) -> TokenChecker:
    return TokenChecker(VerificationKeys(read_key_set(key_set(*keys))), cache_max=10)


def refused(made: TokenChecker, text: str, reason: str = "UNAUTHENTICATED") -> None:
    with pytest.raises(DomainError) as caught:
        made.user_id(f"Bearer {text}")
    assert caught.value.reason_name == reason


@pytest.mark.parametrize(("key", "algorithm"), [(ED, "EdDSA"), (ED, "Ed25519"), (EC, "ES256"), (RSA, "RS256")])
def test_each_kind_of_key_verifies_its_algorithm_and_no_other(key: Key, algorithm: str) -> None:
    made = checker(ED, EC, RSA)
    assert made.user_id("Bearer " + token(key, algorithm)) == "alice"
    header, payload, signature = token(key, algorithm).split(".")
    for other in {"EdDSA", "Ed25519", "ES256", "RS256", "PS256", "RS512", "HS256", "none", "ES256K"} - {algorithm}:
        if {other, algorithm} == {"EdDSA", "Ed25519"}:
            continue
        forged = base64.urlsafe_b64encode(json.dumps({"alg": other, "kid": key.kid}).encode()).rstrip(b"=").decode()
        refused(made, f"{forged}.{payload}.{signature}")
        refused(made, f"{forged}.{payload}.")
    # A key that is known, but is not the one that signed.
    for named in {ED.kid, EC.kid, RSA.kid, OTHER_ED.kid} - {key.kid}:
        refused(made, token(key, algorithm, kid=named))
    refused(made, token(key, algorithm, kid=None))
    refused(made, f"{header}.{payload}.{signature[:-4]}AAAA")


def test_the_key_says_which_algorithm_and_the_token_is_not_asked() -> None:
    made = checker(public(ED, alg="Ed25519"), EC, RSA)
    assert made.user_id("Bearer " + token(ED, "Ed25519")) == "alice"
    refused(made, token(ED, "EdDSA"))
    keys = VerificationKeys(read_key_set(key_set(ED, EC, RSA)))
    for key, good in ((ED, {"EdDSA", "Ed25519"}), (EC, {"ES256"}), (RSA, {"RS256"})):
        for algorithm in ("EdDSA", "Ed25519", "ES256", "RS256", "HS256", "none", "PS256", ""):
            with (
                nullcontext() if algorithm in good else pytest.raises(ValueError, match="not an algorithm of this key")
            ):
                assert keys.key_for({"alg": algorithm, "kid": key.kid}).kid == key.kid


@pytest.mark.parametrize("key", [ED, EC, RSA])
def test_a_public_key_is_no_secret(key: Key) -> None:
    """The oldest trick: what everybody may read, taken for the secret of HS256."""
    made = checker(ED, EC, RSA)
    pem = key.as_pem(private=False) if not isinstance(key, OctKey) else b""
    for secret in (
        pem,
        pem.strip(),
        json.dumps(public(key)).encode(),
        json.dumps(public(key), separators=(",", ":")).encode(),
    ):
        for kid in (key.kid, None):
            parts = [
                base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
                for part in ({"alg": "HS256", "kid": kid} if kid else {"alg": "HS256"}, CLAIMS)
            ]
            mac = hmac.digest(secret, b".".join(parts), "sha256")
            refused(made, b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode())


def test_a_key_in_the_token_itself_is_not_used() -> None:
    made = checker(ED, EC)
    for member in ({"jwk": public(OTHER_ED)}, {"jku": "https://evil.example/keys"}, {"x5u": "https://evil.example/c"}):
        for named in ({"kid": ED.kid}, {"kid": OTHER_ED.kid}, {}):
            header: dict[str, Any] = {"alg": "EdDSA", **named, **member}
            refused(made, jwt.encode(header, CLAIMS, OTHER_ED, algorithms=["EdDSA"]))


def test_local_tokens_and_keys_do_not_mix() -> None:
    refused(checker(ED), issue("s" * 40, "alice"))
    refused(TokenChecker("s" * 40, cache_max=10), token(ED, "EdDSA"))
    refused(TokenChecker("s" * 40, cache_max=10), token(RSA, "RS256"))


def test_a_set_of_one_key_need_not_name_it() -> None:
    made = checker(ED)
    assert made.user_id("Bearer " + token(ED, "EdDSA", kid=None)) == "alice"
    refused(made, token(ED, "EdDSA", kid="another"))


#: What no member of a key is.
_NO_TEXTS: list[Any] = [7, ["RSA"], {}, True]


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "PS256"},
        {"alg": "RS512"},
        {"kty": "AKP"},
        {"n": "AQAB"},
        # And what is no key at all, whatever its members are.
        *({name: value} for name in ("kty", "n", "alg", "use", "key_ops") for value in _NO_TEXTS),
        {"kid": 7},
        {"kid": ["RSA"]},
        {"key_ops": None},
        {"e": ""},
    ],
    ids=str,
)
def test_a_key_for_something_else_is_left_out(change: dict[str, Any]) -> None:
    made = checker(ED, public(RSA, **change))
    refused(made, token(RSA, "RS256"))
    assert made.user_id("Bearer " + token(ED, "EdDSA")) == "alice"
    with pytest.raises(ValueError, match="no key of the set"):
        read_key_set(key_set(public(RSA, **change)))


def test_a_key_may_say_for_what_it_is() -> None:
    made = checker(public(RSA, use="sig", alg="RS256"), public(EC, key_ops=["verify"]))
    assert made.user_id("Bearer " + token(RSA, "RS256")) == "alice"
    assert made.user_id("Bearer " + token(EC, "ES256")) == "alice"


@pytest.mark.parametrize("kind", ["1024", "P-384", "X25519", "Ed448"])
def test_a_weak_or_unknown_key_is_left_out(kind: str) -> None:
    with pytest.warns() if kind == "1024" else nullcontext():
        made: Key = (
            RSAKey.generate_key(1024, auto_kid=True)
            if kind == "1024"
            else ECKey.generate_key("P-384", auto_kid=True)
            if kind == "P-384"
            else OKPKey.generate_key(kind, auto_kid=True)  # type: ignore[arg-type]
        )
    assert [key.kid for key in read_key_set(key_set(made, ED))] == [ED.kid]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\x00", b"\xff", b"[" * 100_000, b'{"keys": []}', b'{"keys": 1}'])
@pytest.mark.parametrize("in_set", [False, True])
def test_what_is_no_key_set_is_refused(text: bytes, in_set: bool) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (whatever it says)
        read_key_set(b'{"keys": [' + text + b"]}" if in_set else text)


@pytest.mark.parametrize("key", [OctKey.generate_key(256, auto_kid=True), OTHER_ED, EC, RSA])
def test_a_set_with_a_secret_in_it_is_refused_as_a_whole(key: Key) -> None:
    with pytest.raises(ValueError, match="symmetric or private"):
        read_key_set(key_set(ED, key.as_dict(private=True)))


def test_names_and_numbers_of_keys_are_bounded() -> None:
    with pytest.raises(ValueError, match="same name"):
        read_key_set(key_set(ED, public(EC, kid=ED.kid)))
    with pytest.raises(ValueError, match="at most 64"):
        read_key_set(key_set(*[public(ED, kid=str(number)) for number in range(65)]))


async def test_keys_that_are_not_known_are_asked_for_seldom_however_many_tokens_name_them() -> None:
    now = [0.0]
    keys = VerificationKeys(read_key_set(key_set(ED, EC)), clock=lambda: now[0])

    def asks(kid: str) -> bool:
        keys.wanted.clear()
        with pytest.raises(UnknownKeyError):
            keys.key_for({"alg": "EdDSA", "kid": kid})
        return keys.wanted.is_set()

    assert asks("new")
    assert not asks("new")
    assert asks("newer")
    now[0] = 29.0
    assert not asks("new")
    now[0] = 31.0
    assert asks("new")
    for number in range(3000):
        asks(f"forged-{number}")
    assert len(keys._unknown) <= 1024


class _KeyHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: KeySite = self.server.site  # type: ignore[attr-defined]
        site.asked += 1
        status, headers, body = site.answer()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@dataclass
class KeySite:
    """An HTTP server that answers with whatever a test wants."""

    url: str = ""
    asked: int = 0
    answer: Callable[[], tuple[int, dict[str, str], bytes]] = field(default=lambda: (200, {}, key_set(ED)))

    def shows(self, *keys: Key | dict[str, Any]) -> None:
        text = key_set(*keys)
        self.answer = lambda: (200, {}, text)

    def says(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.answer = lambda: (status, headers, body)


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[int]:
    """The port on which a server answers, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield int(server.server_address[1])  # type: ignore[index]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[KeySite]:
    """It, on loopback."""
    made = KeySite()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _KeyHandler)
    server.site = made  # type: ignore[attr-defined]
    with served(server) as port:
        made.url = f"http://127.0.0.1:{port}/keys"
        yield made


@dataclass
class Rotating:
    """A checker whose keys follow a source, which is at work."""

    checker: TokenChecker
    keys: VerificationKeys
    source: KeySource

    async def accepts(self, text: str, within_s: float = 5.0) -> None:
        async def good() -> bool:
            try:
                return self.checker.user_id(f"Bearer {text}") == "alice"
            except DomainError:
                return False

        await eventually(good, within_s)

    async def refuses(self, text: str, reason: str = "UNAUTHENTICATED", within_s: float = 5.0) -> None:
        async def bad() -> bool:
            try:
                self.checker.user_id(f"Bearer {text}")
            except DomainError as error:
                return error.reason_name == reason
            return False

        await eventually(bad, within_s)


@asynccontextmanager
async def rotating(read: Callable[[], bytes], **changes: Any) -> AsyncIterator[Rotating]:
    keys = VerificationKeys()
    made = TokenChecker(keys, cache_max=100)
    given: dict[str, Any] = {
        "name": "test",
        "period_s": 0.05,
        "age_max_s": 60.0,
        "changed": made.forget,
        "pause_s": 0.05,
    }
    source = KeySource(keys, read, **(given | changes))
    await source.refresh()
    task = asyncio.create_task(source.keep_current())
    try:
        yield Rotating(made, keys, source)
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_keys_rotate_by_a_file_without_a_restart_and_one_that_was_withdrawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ED))
    async with rotating(lambda: read_file(path)) as made:
        old = token(ED, "EdDSA")
        await made.accepts(old)
        refused(made.checker, token(EC, "ES256"))
        path.write_bytes(key_set(ED, EC))
        await made.accepts(token(EC, "ES256"))
        await made.accepts(old)
        path.write_bytes(key_set(EC))
        # Also the one that is remembered as good.
        await made.refuses(old)
        await made.accepts(token(EC, "ES256"))


async def test_the_same_name_with_another_key_is_another_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(public(ED, kid="current")))
    async with rotating(lambda: read_file(path)) as made:
        old = token(ED, "EdDSA", kid="current")
        await made.accepts(old)
        path.write_bytes(key_set(public(OTHER_ED, kid="current")))
        await made.refuses(old)
        await made.accepts(token(OTHER_ED, "EdDSA", kid="current"))


@pytest.mark.parametrize("text", [b"", b"{", b'{"keys": []}', b"x" * 70_000, key_set(OTHER_ED.as_dict(private=True))])
async def test_a_file_that_is_spoilt_leaves_the_keys_as_they_were(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ED))
    async with rotating(lambda: read_file(path)) as made:
        path.write_bytes(text)
        await eventually(lambda: _is(made.source.failures > 1))
        await made.accepts(token(ED, "EdDSA"))
        refused(made.checker, token(OTHER_ED, "EdDSA"))
        path.unlink()
        failures = made.source.failures
        await eventually(lambda: _is(made.source.failures > failures))
        path.write_bytes(key_set(OTHER_ED))
        await made.accepts(token(OTHER_ED, "EdDSA"))


async def test_an_unknown_key_is_fetched_at_once_and_not_again_and_again(site: KeySite) -> None:
    async with rotating(lambda: read_url(site.url), period_s=3600.0, pause_s=0.3) as made:
        assert site.asked == 1
        site.shows(ED, EC)
        await made.accepts(token(EC, "ES256"))
        assert site.asked == 2
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 1.0:
            for number in range(20):
                refused(made.checker, token(OTHER_ED, "EdDSA", kid=f"forged-{loop.time()}-{number}"))
            await asyncio.sleep(0.001)
        assert site.asked <= 2 + 1.0 / 0.3 + 1
        await made.accepts(token(ED, "EdDSA"))


async def test_while_the_keys_cannot_be_fetched_they_are_kept_and_believed_for_a_while_only(site: KeySite) -> None:
    async with rotating(lambda: read_url(site.url), age_max_s=1.0) as made:
        good = token(ED, "EdDSA")
        await made.accepts(good)
        site.says(500)
        await eventually(lambda: _is(made.source.failures > 1))
        assert made.checker.user_id(f"Bearer {good}") == "alice"
        # Nobody is let in, and nobody is told that a good token is bad.
        await made.refuses(good, "UNAVAILABLE")
        site.shows(ED)
        await made.accepts(good)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (302, {"location": "/elsewhere"}, b""),
        (307, {"location": "file:///etc/passwd"}, b""),
        (204, {}, b""),
        (206, {}, key_set(OTHER_ED)),
        (404, {}, key_set(OTHER_ED)),
        (401, {}, key_set(OTHER_ED)),
        (200, {}, b"<html>"),
        (200, {}, b" " * 70_000 + key_set(OTHER_ED)),
    ],
)
async def test_an_answer_that_is_no_key_set_changes_nothing(
    site: KeySite, status: int, headers: dict[str, str], body: bytes
) -> None:
    async with rotating(lambda: read_url(site.url)) as made:
        site.says(status, body, **headers)
        await eventually(lambda: _is(made.source.failures > 1))
        await made.accepts(token(ED, "EdDSA"))
        refused(made.checker, token(OTHER_ED, "EdDSA"))


async def test_a_site_that_says_nothing_holds_nobody_up(site: KeySite) -> None:
    ended = threading.Event()

    def silent() -> tuple[int, dict[str, str], bytes]:
        ended.wait(20)
        return 200, {}, b""

    async with rotating(lambda: read_url(site.url)) as made:
        site.answer = silent
        asked = site.asked
        await eventually(lambda: _is(site.asked > asked))
        began = asyncio.get_running_loop().time()
        assert made.checker.user_id("Bearer " + token(ED, "EdDSA")) == "alice"
        assert asyncio.get_running_loop().time() - began < 0.5
        ended.set()


@pytest.mark.parametrize(
    ("head", "drop"),
    [(b"HTTP/1.1 200 OK\r\nx: ", b"y"), (b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b" ")],
)
async def test_an_answer_that_never_ends_is_cut_off(head: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time; the whole never would, and the keys would be believed for ever."""
    monkeypatch.setattr(key_source, "_WHOLE_S_MAX", 0.3)
    ended = threading.Event()

    class Drips(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.sendall(head)
                while not ended.wait(0.01):
                    self.request.sendall(drop)

    keys = VerificationKeys(read_key_set(key_set(ED)))
    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drips)) as port:
        read = lambda: read_url(f"http://127.0.0.1:{port}/keys")  # noqa: E731
        source = KeySource(keys, read, name="test", period_s=9.0, age_max_s=0.1, changed=lambda: None)
        try:
            async with asyncio.timeout(5):
                assert await source.refresh()
        finally:
            ended.set()
    assert not len(keys)


def test_keys_over_https_come_from_whom_the_url_names_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = Peers(tmp_path)
    files = peers.certify("inventory")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _KeyHandler)
    server.site = KeySite()  # type: ignore[attr-defined]
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **named: found("127.0.0.1", *rest, **named))
    with served(server) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            read_url(f"https://inventory.flashsale:{port}/keys")
        monkeypatch.setenv("SSL_CERT_FILE", str(files.authorities))
        assert read_url(f"https://inventory.flashsale:{port}/keys?v=1") == key_set(ED)
        with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
            read_url(f"https://localhost:{port}/keys")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://id.example/keys", ""),
        ("http://127.0.0.1:8080/keys", ""),
        ("http://[::1]/keys", ""),
        ("http://localhost/keys", ""),
        ("http://id.example/keys", "must be https"),
        ("http://127.0.0.1.evil.example/keys", "must be https"),
        ("file:///etc/keys.json", "is not a URL"),
        ("ftp://id.example/keys", "must be https"),
        ("https://user:secret@id.example/keys", "must not hold a password"),
        ("https:///keys", "is not a URL"),
        ("keys.json", "is not a URL"),
        ("https://[x/keys", "is not a URL"),
    ],
)
def test_keys_come_over_https_only(url: str, why: str) -> None:
    assert why_not_url(url) == why
    if why:
        with pytest.raises(SettingsError, match="GATEWAY_JWKS_URL"):
            Settings(**SETTINGS, jwks_url=url)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({}, "exactly one"),
        ({"jwt_secret": "s" * 40, "jwks_file": "x"}, "exactly one"),
        ({"jwks_url": "https://id.example/k", "jwks_file": "x"}, "exactly one"),
        ({"jwt_secret": "s" * 31}, "shorter than 32"),
        ({"jwt_secret": "s" * 40, "listen": "0.0.0.0:80"}, "loopback only"),
        ({"jwt_secret": "s" * 40, "listen": "[::]:80"}, "loopback only"),
        ({"jwt_secret": "s" * 40, "listen": "shop.example:80"}, "loopback only"),
        ({"jwks_url": "https://id.example/k", "jwks_age_max_s": 60.0}, "too old"),
    ],
)
def test_one_way_to_check_tokens_is_set_and_a_shared_secret_stays_on_this_machine(
    changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(SettingsError, match=match):
        Settings(**SETTINGS, **changes)
    Settings(**SETTINGS, jwt_secret="s" * 40, listen="[::1]:80")
    Settings(**SETTINGS, jwt_secret="s" * 40, listen="0.0.0.0:80", shared_secret_anywhere=True)


async def test_the_gateway_starts_without_keys_by_url_but_not_by_file(site: KeySite, tmp_path: Path) -> None:
    site.says(503)
    made = await set_up_tokens(Settings(**SETTINGS, jwks_url=site.url), Metrics())
    refused(made.checker, token(ED, "EdDSA"), "UNAVAILABLE")
    site.shows(ED)
    assert made.source is not None
    assert await made.source.refresh() == ""
    assert made.checker.user_id("Bearer " + token(ED, "EdDSA")) == "alice"
    for text in (b"", b'{"keys": []}', key_set(ED.as_dict(private=True))):
        path = tmp_path / "keys.json"
        path.write_bytes(text)
        with pytest.raises(SettingsError, match="GATEWAY_JWKS_FILE"):
            await set_up_tokens(Settings(**SETTINGS, jwks_file=str(path)), Metrics())
    with pytest.raises(SettingsError, match="GATEWAY_JWKS_FILE"):
        await set_up_tokens(Settings(**SETTINGS, jwks_file="/nowhere/keys.json"), Metrics())


async def _is(value: bool) -> bool:
    return value
