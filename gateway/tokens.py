"""Who is asking: checks of bearer tokens (JWT, RFC 7519)."""

import json
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from flashsale.common.v1.error_reason_pb2 import ErrorReason
from joserfc import jwt
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import KeySet, OctKey, OKPKey

from mesh.errors import DomainError
from mesh.settings import SettingsError
from mesh.validation import is_name

ISSUER = "flashsale"
AUDIENCE = "flashsale"

_CLAIMS = {
    "iss": {"essential": True, "value": ISSUER},
    "aud": {"essential": True, "value": AUDIENCE},
    "sub": {"essential": True},
    "exp": {"essential": True},
}


def _refused(detail: str) -> DomainError:
    return DomainError(ErrorReason.ERROR_REASON_UNAUTHENTICATED, detail)


class TokenChecker:
    """Verifies tokens under one key and the algorithms that go with it, whatever a token's own header asks for.

    ``cache_max`` verified tokens are remembered until they expire, so that the repetitions of a request do not pay for
    the signature again. ``clock`` is seconds since the epoch.
    """

    def __init__(
        self,
        key: OctKey | KeySet,
        algorithms: tuple[str, ...],
        *,
        cache_max: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._algorithms = algorithms
        self._cache_max = cache_max
        self._clock = clock
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        registry = jwt.JWTClaimsRegistry(now=lambda: int(clock()), leeway=0, **_CLAIMS)  # type: ignore[arg-type]
        self._validate = registry.validate

    def user_id(self, authorization: str | None) -> str:
        """The user named by an Authorization header. Raises UNAUTHENTICATED when it does not hold a good token."""
        if not authorization:
            raise _refused("an Authorization: Bearer token is required")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _refused("the Authorization header is not of the form: Bearer <token>")
        known = self._known.get(token)
        if known is not None:
            if known[1] > self._clock():
                self._known.move_to_end(token)
                return known[0]
            del self._known[token]
        user_id, expires = self._verified(token)
        self._known[token] = (user_id, expires)
        if len(self._known) > self._cache_max:
            self._known.popitem(last=False)
        return user_id

    def _verified(self, token: str) -> tuple[str, float]:
        try:
            claims = jwt.decode(token, self._key, algorithms=self._algorithms).claims
            self._validate(claims)
            user_id, expires = claims["sub"], float(claims["exp"])
        except (JoseError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # What the library says is for the operator; a forger learns only that the token is refused.
            raise _refused("the token is not valid") from error
        if not isinstance(user_id, str) or not is_name(user_id):
            raise _refused("the token's subject is not a user id")
        return user_id, expires


def checker_from_secret(secret: str, cache_max: int, clock: Callable[[], float] = time.time) -> TokenChecker:
    """Checks HS256 tokens signed with ``secret``."""
    return TokenChecker(OctKey.import_key(secret), ("HS256",), cache_max=cache_max, clock=clock)


def checker_from_jwks(path: Path, cache_max: int, clock: Callable[[], float] = time.time) -> TokenChecker:
    """Checks EdDSA tokens against the Ed25519 public keys of a JSON Web Key Set (RFC 7517, RFC 8037).

    A token names its key by ``kid``, unless there is only one. Raises SettingsError when the file is not such a set.
    """
    try:
        keys = KeySet.import_key_set(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, JoseError) as error:
        raise SettingsError(f"GATEWAY_JWKS_FILE: {path} is not a JSON Web Key Set ({type(error).__name__})") from error
    if not keys.keys or not all(isinstance(key, OKPKey) and key.curve_name == "Ed25519" for key in keys.keys):
        raise SettingsError(f"GATEWAY_JWKS_FILE: {path} must hold Ed25519 keys and no others")
    # RFC 9864 renames EdDSA to Ed25519; tokens with the older name are as good, and not worth a warning each.
    warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)
    return TokenChecker(keys, ("EdDSA", "Ed25519"), cache_max=cache_max, clock=clock)
