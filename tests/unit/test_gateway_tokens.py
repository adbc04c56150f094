"""Which tokens are good."""

import base64
import hmac
import json
import time
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.jwk import OctKey

from gateway.local_tokens import issue
from gateway.problems import NoTokenError
from gateway.tokens import TokenChecker
from mesh.errors import DomainError

SECRET = "k" * 48
NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {"iss": "flashsale", "aud": "flashsale", "sub": "alice", "exp": int(NOW) + 60}


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode({"alg": algorithm}, claims, OctKey.import_key(secret), algorithms=[algorithm])


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: str = "") -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, signature])


def checker(**changes: Any) -> TokenChecker:
    return TokenChecker(SECRET, **{"cache_max": 10, "clock": lambda: NOW, **changes})


def refused(made: TokenChecker, authorization: str | None) -> DomainError:
    with pytest.raises(DomainError) as caught:
        made.user_id(authorization)
    assert (caught.value.reason_name, caught.value.http_status) == ("UNAUTHENTICATED", 401)
    return caught.value


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
        {"nbf": "yesterday"},
        {"nbf": True},
        {"exp": True},
        {"exp": 10**15},
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": -(10**400)},
        {"iss": ["flashsale"]},
        {"aud": {"flashsale": True}},
        {"aud": ["other", ["flashsale"]]},
        {"aud": "flashsale,other"},
        {"iss": "flashsale "},
        {"iss": "Flashsale"},
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


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer  ", "bearer x"])
def test_a_header_with_no_good_bearer_token_is_refused(header: str) -> None:
    assert not isinstance(refused(checker(), header), NoTokenError)


@pytest.mark.parametrize("header", [None, "", "Basic YTpi", "Token x", "x" * 4000])
def test_who_sends_no_bearer_token_is_refused_for_that_alone(header: str | None) -> None:
    assert isinstance(refused(checker(), header), NoTokenError)


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


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"typ": "id+jwt"},
        {"typ": ["JWT"]},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
        {"kid": 7},
        {"kid": ["a"]},
        {"x": "y" * 600},
        {"alg": ["HS256"]},
        {"alg": None},
        {"alg": "hs256"},
    ],
    ids=str,
)
def test_a_header_that_asks_for_something_else_is_refused_although_the_secret_is_right(header: dict[str, Any]) -> None:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256"} | header, GOOD)
    ]
    mac = hmac.digest(SECRET.encode(), b".".join(parts), "sha256")
    token = b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()
    for _ in range(2):
        refused(checker(), f"Bearer {token}")


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_an_access_token_may_say_that_it_is_one(kind: str) -> None:
    token = jwt.encode({"alg": "HS256", "typ": kind}, GOOD, OctKey.import_key(SECRET))
    assert checker().user_id(f"Bearer {token}") == "alice"


def test_issuer_and_audience_are_those_that_were_set() -> None:
    made = checker(issuer="https://id.example", audience="shop")
    assert made.user_id("Bearer " + signed(GOOD | {"iss": "https://id.example", "aud": ["shop"]})) == "alice"
    for change in ({}, {"iss": "https://id.example"}, {"aud": "shop"}):
        refused(made, "Bearer " + signed(GOOD | change))


def test_what_was_remembered_is_checked_again_once_it_was_forgotten() -> None:
    made = checker()
    made.user_id("Bearer " + signed(GOOD))
    made.forget()
    assert not made._known
    assert made.user_id("Bearer " + signed(GOOD)) == "alice"
