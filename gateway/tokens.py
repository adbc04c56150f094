"""Who is asking: checks of bearer tokens (JWT, RFC 7519, with the advice of RFC 8725)."""

import base64
import hmac
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key, OctKey
from joserfc.jws import JWSRegistry

from gateway.problems import NoTokenError
from gateway.verification_keys import ALGORITHMS, VerificationKeys
from mesh.errors import DomainError
from mesh.validation import is_name

ISSUER = "flashsale"
AUDIENCE = "flashsale"
#: Claim ``role`` of those who may open, pause and close sales and look at everybody's purchases.
OPERATOR_ROLE = "operator"

#: Token headers remembered as good.
_HEADERS_MAX = 16
#: What a token may say it is: one for access, not one for logging in or for another purpose (RFC 8725, 3.11; RFC 9068).
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
#: Latest time that a claim may name, seconds since the epoch: the end of the year 9999. Beyond it are infinities.
_TIME_MAX = 253_402_300_800
#: When to come again while the keys are not known, milliseconds.
_KEYS_AWAY_MS = 2_000


def _refused(detail: str) -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_UNAUTHENTICATED, detail)


def _is_time(value: Any) -> TypeGuard[float]:
    """Whether a claim is a NumericDate (RFC 7519, section 2)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value < _TIME_MAX


class Caller(NamedTuple):
    """Whom a token is for, until when (seconds since the epoch), and whether it is an operator."""

    user_id: str
    expires: float
    is_operator: bool


def good_for(claims: Mapping[str, Any], now: float, issuer: str = ISSUER, audience: str = AUDIENCE) -> Caller | None:
    """Whom a token of ``issuer`` for ``audience`` is for; None if it is not good at ``now``, seconds since the epoch.

    Required are iss, aud (alone or among others), exp and sub; nbf counts where it is there. Written out, because the
    library's own check of claims costs as much as the signature.
    """
    user_id, expires, not_before = claims.get("sub"), claims.get("exp"), claims.get("nbf", now)
    meant_for = claims.get("aud")
    if claims.get("iss") != issuer or audience not in (meant_for if isinstance(meant_for, list) else [meant_for]):
        return None
    if not _is_time(expires) or not _is_time(not_before) or not not_before <= now < expires:
        return None
    if not isinstance(user_id, str) or not is_name(user_id):
        return None
    # Whatever else a role may be, it is not this one.
    return Caller(user_id, expires, claims.get("role") == OPERATOR_ROLE)


class TokenChecker:
    """Verifies tokens with one secret (HS256), or with public keys, each by the algorithms that are the key's own,
    whatever a token's header asks for.

    ``cache_max`` verified tokens are remembered until they expire, so that the repetitions of a request do not pay for
    the signature again. ``clock`` is seconds since the epoch. With a secret, tokens whose header the library has
    accepted before (an issuer writes the same one every time) are compared with their signature directly: 6 instead of
    30 us, and one is due for each buyer of a crowd. Whatever does not match is the library's to refuse.
    """

    def __init__(
        self,
        keys: str | VerificationKeys,
        *,
        cache_max: int,
        clock: Callable[[], float] = time.time,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
    ) -> None:
        self._keys = keys if isinstance(keys, VerificationKeys) else OctKey.import_key(keys)
        self._secret = keys.encode() if isinstance(keys, str) else None
        self._cache_max = cache_max
        self._clock = clock
        self._issuer, self._audience = issuer, audience
        self._known: OrderedDict[str, Caller] = OrderedDict()
        # Made once: by default the library makes one for every token.
        self._registry = JWSRegistry(algorithms=["HS256"] if isinstance(keys, str) else ALGORITHMS)
        self._headers: set[str] = set()
        # RFC 9864 renames EdDSA to Ed25519; tokens with the older name are as good, and not worth a warning each.
        warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)

    def forget(self) -> None:
        """Forgets which tokens are good: the keys have changed, and one that signed some of them may be gone."""
        self._known.clear()

    def user_id(self, authorization: str | None) -> str:
        """The user named by an Authorization header. Raises UNAUTHENTICATED when it does not hold a good token."""
        return self.caller(authorization).user_id

    def operator(self, authorization: str | None) -> str:
        """The operator named by it. Raises UNAUTHENTICATED as ``user_id``, and PERMISSION_DENIED for anybody else."""
        caller = self.caller(authorization)
        if not caller.is_operator:
            raise DomainError(
                ErrorReason.ERROR_REASON_PERMISSION_DENIED,
                "only operators may do this",
                metadata={"role": OPERATOR_ROLE},
            )
        return caller.user_id

    def caller(self, authorization: str | None) -> Caller:
        """Whom an Authorization header names. Raises UNAUTHENTICATED when it does not hold a good token: NoTokenError
        when there is no such header, or one of another scheme, which is as if there were none."""
        if not authorization:
            raise NoTokenError("an Authorization: Bearer token is required")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise NoTokenError("the Authorization header is not of the form: Bearer <token>")
        if not token:
            raise _refused("the Authorization header is not of the form: Bearer <token>")
        known = self._known.get(token)
        if known is not None:
            if known.expires > self._clock():
                self._known.move_to_end(token)
                return known
            del self._known[token]
        caller = self._known[token] = self._verified(token)
        if len(self._known) > self._cache_max:
            self._known.popitem(last=False)
        return caller

    def _verified(self, token: str) -> Caller:
        if isinstance(self._keys, VerificationKeys) and not len(self._keys):
            # Not the caller's fault, and no reason to let anybody in.
            raise DomainError(
                ErrorReason.ERROR_REASON_UNAVAILABLE,
                "the keys of tokens are not known now",
                retry_after_ms=_KEYS_AWAY_MS,
            )
        try:
            claims = self._signed_claims(token) or self._claims(token)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            # What the library says is for the operator; a forger learns only that the token is refused.
            raise _refused("the token is not valid") from error
        good = good_for(claims, self._clock(), self._issuer, self._audience)
        if good is None:
            raise _refused("the token has expired or is not for here")
        return good

    def _claims(self, token: str) -> Mapping[str, Any]:
        claims = jwt.decode(token, self._key_for, registry=self._registry).claims
        if self._secret is not None and len(self._headers) < _HEADERS_MAX:
            self._headers.add(token.partition(".")[0])
        return claims

    def _key_for(self, signature: Any) -> Key:
        """The one key that may verify what has this header. Raises ValueError when there is none."""
        header: Mapping[str, Any] = signature.headers()
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise ValueError("not an access token")
        if "crit" in header:
            # It names what must be understood, and there is nothing of the kind that is.
            raise ValueError("extensions are not understood")
        return self._keys.key_for(header) if isinstance(self._keys, VerificationKeys) else self._keys

    def _signed_claims(self, token: str) -> Mapping[str, Any] | None:
        """The claims, if the token has a header known to be good and our signature."""
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        if self._secret is None or header not in self._headers or "." in payload:
            return None
        due = base64.urlsafe_b64encode(hmac.digest(self._secret, signed.encode(), "sha256")).rstrip(b"=")
        if not hmac.compare_digest(due, signature.encode()):
            return None
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=="))
        return claims if isinstance(claims, dict) else None
