"""The public keys that tokens are checked with: a JSON Web Key Set (RFC 7517) and what each of its keys is good for.

What a key may verify is said by the key, never by the token: an Ed25519 key verifies EdDSA, one on P-256 ES256, an RSA
key RS256, and none of them any other algorithm (RFC 8725, section 3.1).
"""

import asyncio
import json
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

#: What tokens that are checked by public keys may be signed with. RFC 9864 renames EdDSA to Ed25519; both are in use.
ALGORITHMS = ("EdDSA", "Ed25519", "ES256", "RS256")

#: Most keys of a set, and least and most bits of an RSA modulus: below it is forged (NIST SP 800-131A), above it each
#: check would take longer than the purchase.
_KEYS_MAX = 64
_RSA_BITS_MIN, _RSA_BITS_MAX = 2048, 4096
#: Names of keys that are known to be unknown, and for how long each is believed to be, seconds.
_UNKNOWN_MAX, _UNKNOWN_S = 1024, 30.0
#: Members of keys that nobody but their owner may know (RFC 7518, section 6; priv: draft-ietf-cose-dilithium).
_SECRET_MEMBERS = frozenset({"k", "d", "p", "q", "dp", "dq", "qi", "oth", "priv"})


class VerificationKey(NamedTuple):
    """A public key and the algorithms it verifies. Keys are equal when nothing about them differs."""

    kid: str | None
    algorithms: frozenset[str]
    #: SHA-256 of the key alone (RFC 7638).
    thumbprint: str
    key: Key

    def same(self) -> tuple[object, ...]:
        """What two readings of one key have in common."""
        return self[:3]


class UnknownKeyError(ValueError):
    """A token names a key that is not among those known now."""


def read_key_set(text: bytes) -> tuple[VerificationKey, ...]:
    """The keys of a set that can verify tokens; others, such as keys for encryption or of kinds that are not known
    here, are left out (RFC 7517, section 5).

    Raises ValueError for what is no key set, for one without any such key or with two of the same name, and for one
    that holds a secret: a symmetric or private key that anybody can fetch is one that anybody can sign with.
    """
    try:
        members = json.loads(text)["keys"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a JSON Web Key Set ({type(error).__name__})") from error
    if not isinstance(members, list) or len(members) > _KEYS_MAX or not all(isinstance(each, dict) for each in members):
        raise ValueError(f"keys is not a list of at most {_KEYS_MAX} keys")
    if any(not _SECRET_MEMBERS.isdisjoint(each) for each in members):
        raise ValueError("the set holds a symmetric or private key")
    found = [key for key in map(_verification_key, members) if key is not None]
    if not found:
        raise ValueError("no key of the set can verify tokens")
    names = [key.kid for key in found]
    if len(set(names)) != len(names):
        raise ValueError("two keys of the set have the same name")
    return tuple(found)


def _verification_key(member: dict[str, Any]) -> VerificationKey | None:
    try:
        with warnings.catch_warnings():
            # Of short RSA keys, which are left out below.
            warnings.simplefilter("ignore", SecurityWarning)
            key = JWKRegistry.import_key(dict(member))
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError, UnsupportedAlgorithm):
        # What the library makes of members that are not what they should be; it looks at those below, too.
        return None
    algorithms = _algorithms(key)
    if key.alg is not None:
        algorithms &= {key.alg}
    if not algorithms or member.get("use", "sig") != "sig" or "verify" not in member.get("key_ops", ["verify"]):
        return None
    return VerificationKey(key.kid, algorithms, key.thumbprint(), key)


def _algorithms(key: Key) -> frozenset[str]:
    match key:
        case OKPKey() if key.curve_name == "Ed25519":
            return frozenset({"EdDSA", "Ed25519"})
        case ECKey() if key.curve_name == "P-256":
            return frozenset({"ES256"})
        case RSAKey() if _RSA_BITS_MIN <= key.public_key.key_size <= _RSA_BITS_MAX:
            return frozenset({"RS256"})
    return frozenset()


class VerificationKeys:
    """The keys that are good now. They are replaced as a whole, between two checks and never in the midst of one."""

    def __init__(self, keys: Iterable[VerificationKey] = (), clock: Callable[[], float] = time.monotonic) -> None:
        #: Set when a token names a key that was not known, and was not asked for in the last half minute.
        self.wanted = asyncio.Event()
        self._clock = clock
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._keys: dict[str | None, VerificationKey] = {}
        self.replace(keys)

    def __len__(self) -> int:
        """How many there are; none: not known yet, or not believed any more."""
        return len(self._keys)

    def replace(self, keys: Iterable[VerificationKey]) -> bool:
        """Takes these instead; whether they are others. A token of a key that is gone is refused from now on."""
        fresh = {key.kid: key for key in keys}
        changed = [key.same() for key in fresh.values()] != [key.same() for key in self._keys.values()]
        self._keys = fresh
        return changed

    def key_for(self, header: Mapping[str, Any]) -> Key:
        """The key that verifies a token with this header. Raises UnknownKeyError, and ValueError for an algorithm that
        is not the key's."""
        kid = header.get("kid")
        # A set of one key need not name it (RFC 7515, 4.1.4).
        only = next(iter(self._keys.values())) if kid is None and len(self._keys) == 1 else None
        found = only or (self._keys.get(kid) if isinstance(kid, str) else None)
        if found is None:
            if isinstance(kid, str):
                self._note_unknown(kid)
            raise UnknownKeyError("the key is not known")
        if header["alg"] not in found.algorithms:
            raise ValueError("not an algorithm of this key")
        return found.key

    def _note_unknown(self, kid: str) -> None:
        now = self._clock()
        if self._unknown.get(kid, -_UNKNOWN_S) > now - _UNKNOWN_S:
            return
        self._unknown[kid] = now
        self._unknown.move_to_end(kid)
        if len(self._unknown) > _UNKNOWN_MAX:
            self._unknown.popitem(last=False)
        self.wanted.set()
