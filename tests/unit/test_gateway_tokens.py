"""Which tokens are good."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import KeySet, OctKey, OKPKey, RSAKey

from gateway.local_tokens import issue
from gateway.tokens import TokenChecker, checker_from_jwks, checker_from_secret
from mesh.errors import DomainError
from mesh.settings import SettingsError

SECRET = "k" * 48
NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {"iss": "flashsale", "aud": "flashsale", "sub": "alice", "exp": int(NOW) + 60}


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode({"alg": algorithm}, claims, OctKey.import_key(secret), algorithms=[algorithm])


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: str = "") -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, signature])


def checker(**changes: Any) -> TokenChecker:
    return checker_from_secret(SECRET, **{"cache_max": 10, "clock": lambda: NOW, **changes})


def refused(made: TokenChecker, authorization: str | None) -> None:
    with pytest.raises(DomainError) as caught:
        made.user_id(authorization)
    assert (caught.value.reason_name, caught.value.http_status) == ("UNAUTHENTICATED", 401)


def test_a_good_token_names_its_user_again_and_again() -> None:
    made = checker()
    for _ in range(3):
        assert made.user_id("Bearer " + signed(GOOD)) == "alice"
        assert made.user_id("bearer " + signed(GOOD | {"aud": ["other", "flashsale"]})) == "alice"


@pytest.mark.parametrize(
    "change",
    [
        {"exp": int(NOW) - 1},
        {"exp": int(NOW)},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": [1]},
        {"iss": "other"},
        {"iss": None},
        {"aud": "other"},
        {"aud": []},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": " "},
        {"sub": "x" * 129},
        {"sub": "a\nb"},
        {"sub": 7},
        {"sub": ["alice"]},
        {"nbf": int(NOW) + 60},
    ],
    ids=str,
)
def test_a_claim_that_is_missing_wrong_or_over_is_refused(change: dict[str, Any]) -> None:
    claims = {name: value for name, value in (GOOD | change).items() if value is not None}
    refused(checker(), "Bearer " + signed(claims))


@pytest.mark.parametrize("known_header", [False, True])
def test_a_forged_token_is_refused_whatever_its_header_says(known_header: bool) -> None:
    made = checker()
    if known_header:
        made.user_id("Bearer " + signed(GOOD | {"sub": "bob"}))
    header, payload, signature = signed(GOOD).split(".")
    changed = unsigned({"alg": "HS256"}, GOOD | {"sub": "mallory"}).split(".")[1]
    for token in (
        signed(GOOD, secret="m" * 48),
        f"{header}.{changed}.{signature}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{signature[:-1]}",
        f"{header}.{payload}.{signature}=",
        f"{header}.{payload}.{signature}.{signature}",
        f"{header}.{payload}.{payload}.{signature}",
        f".{header}.{payload}.{signature}",
        f"{header}.{payload}",
        unsigned({"alg": "none"}, GOOD),
        unsigned({"alg": "NONE"}, GOOD),
        unsigned({"alg": "none"}, GOOD, signature),
        unsigned({"alg": "RS256"}, GOOD, signature),
        unsigned({"alg": "EdDSA"}, GOOD, signature),
        unsigned({}, GOOD, signature),
        unsigned({"alg": "HS256", "crit": ["x"]}, GOOD, signature),
        signed(GOOD, algorithm="HS384"),
        signed(GOOD, algorithm="HS512"),
        "..",
        "a.b.c.d.e",
        "ü.ü.ü",
        "[" * 3000,
    ):
        refused(made, f"Bearer {token}")


def test_a_known_header_changes_nothing_about_claims_and_payloads() -> None:
    made = checker()
    for i in range(3):
        assert made.user_id("Bearer " + signed(GOOD | {"sub": f"user-{i}"})) == f"user-{i}"
    refused(made, "Bearer " + signed(GOOD | {"exp": int(NOW) - 1}))
    refused(made, "Bearer " + signed(GOOD | {"aud": "other"}))
    for payload in (b"", b"[]", b"null", b'"text"', b"{", b"\xff"):
        text = jws.serialize_compact({"alg": "HS256", "typ": "JWT"}, payload, OctKey.import_key(SECRET))
        refused(made, "Bearer " + text)


def test_only_a_signed_role_makes_an_operator_also_when_the_token_is_remembered() -> None:
    made = checker(clock=time.time)
    for _ in range(3):
        assert made.operator("Bearer " + issue(SECRET, "olga", operator=True)) == "olga"
        assert made.user_id("Bearer " + issue(SECRET, "olga", operator=True)) == "olga"
        with pytest.raises(DomainError) as caught:
            made.operator("Bearer " + issue(SECRET, "olga"))
        assert (caught.value.reason_name, caught.value.http_status) == ("PERMISSION_DENIED", 403)
    header, _, signature = issue(SECRET, "olga").split(".")
    forged = issue(SECRET, "olga", operator=True).split(".")[1]
    with pytest.raises(DomainError) as caught:
        made.operator(f"Bearer {header}.{forged}.{signature}")
    assert caught.value.reason_name == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "role", ["Operator", "operators", "", None, 1, True, ["operator"], {"operator": True}], ids=str
)
def test_any_other_role_is_none(role: Any) -> None:
    made = checker()
    token = "Bearer " + signed(GOOD | {"role": role})
    assert made.caller(token).user_id == "alice"
    assert not made.caller(token).is_operator


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Token x", "Bearer  ", "x" * 4000])
def test_a_header_without_a_bearer_token_is_refused(header: str | None) -> None:
    refused(checker(), header)


def test_a_remembered_token_is_refused_once_it_has_expired() -> None:
    now = [NOW]
    made = checker(clock=lambda: now[0])
    token = "Bearer " + signed(GOOD)
    assert made.user_id(token) == "alice"
    now[0] = NOW + 60
    refused(made, token)


def test_remembered_tokens_are_bounded() -> None:
    made = checker(cache_max=5)
    for i in range(50):
        assert made.user_id("Bearer " + signed(GOOD | {"sub": f"u{i}"})) == f"u{i}"
    assert len(made._known) == 5


def test_a_token_issued_here_is_good_and_issuing_is_quick() -> None:
    made = checker(clock=time.time)
    assert made.user_id("Bearer " + issue(SECRET, 'name with "quotes" and ü')) == 'name with "quotes" and ü'
    refused(made, "Bearer " + issue(SECRET, "alice", ttl_s=-1))
    start = time.process_time()
    for i in range(5000):
        issue(SECRET, f"u{i}")
    assert 5000 / (time.process_time() - start) > 20_000


def test_eddsa_tokens_are_checked_against_the_key_they_name(tmp_path: Path) -> None:
    first, second, other = (OKPKey.generate_key("Ed25519", auto_kid=True) for _ in range(3))
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(KeySet([first, second]).as_dict(private=False)))
    made = checker_from_jwks(path, 10, clock=lambda: NOW)

    def token(key: OKPKey, algorithm: str = "EdDSA", **header: Any) -> str:
        return "Bearer " + jwt.encode({"alg": algorithm, **header}, GOOD, key, algorithms=[algorithm])

    assert made.user_id(token(first, kid=first.kid)) == "alice"
    assert made.user_id(token(second, "Ed25519", kid=second.kid)) == "alice"
    refused(made, token(first, kid=second.kid))
    refused(made, token(other, kid=other.kid))
    refused(made, token(other, kid=first.kid))
    refused(made, "Bearer " + signed(GOOD))
    # The public key taken for an HMAC secret, an old trick.
    refused(made, "Bearer " + signed(GOOD, secret=json.dumps(first.as_dict(private=False))))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": []}', '{"keys": [{"kty": "OKP"}]}', '{"keys": 1}', "\x00"])
def test_a_file_that_is_no_key_set_is_a_wrong_setting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match="GATEWAY_JWKS_FILE"):
        checker_from_jwks(path, 10)


def test_a_key_set_with_other_than_ed25519_keys_is_a_wrong_setting(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for key in (RSAKey.generate_key(2048, auto_kid=True), OctKey.generate_key(256), OKPKey.generate_key("X25519")):
        path.write_text(json.dumps({"keys": [key.as_dict()]}))
        with pytest.raises(SettingsError, match="GATEWAY_JWKS_FILE"):
            checker_from_jwks(path, 10)
