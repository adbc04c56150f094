"""Tokens for this machine: benchmarks, tests and people with curl. Signed with the secret that the gateway checks."""

import base64
import hmac
import time

import msgspec

from gateway.tokens import AUDIENCE, ISSUER, OPERATOR_ROLE


def _encoded(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


_HEADER = _encoded(b'{"alg":"HS256","typ":"JWT"}') + b"."


def issue(secret: str, user_id: str, ttl_s: int = 3600, *, operator: bool = False) -> str:
    """A token for ``user_id`` (1 to 128 printable characters) that is good for ``ttl_s`` seconds from now.

    That of an ``operator`` lets its bearer open, pause and close sales and look at everybody's purchases.

    Written out by hand rather than with the library that checks it, because a benchmark needs 50,000 of them at once.
    """
    now = int(time.time())
    claims: dict[str, str | int] = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "iat": now, "exp": now + ttl_s}
    if operator:
        claims["role"] = OPERATOR_ROLE
    signed = _HEADER + _encoded(msgspec.json.encode(claims))
    return (signed + b"." + _encoded(hmac.digest(secret.encode(), signed, "sha256"))).decode()
