"""Names that several services must compute alike: a purchase's id, a request's fingerprint, a user's partition."""

import uuid
from hashlib import blake2b

#: Namespace of purchase ids. Changing it makes every repeated request a new purchase.
PURCHASE_NAMESPACE = uuid.UUID("6f0d1b52-3f6e-5c0e-9a55-7c1f2f1d9b3a")
#: Where a UUID tells its version and variant, and what it tells there: uuid.UUID makes no version 8 before Python 3.14.
_VERSION_AND_VARIANT, _VERSION_8 = 0xF << 76 | 0x3 << 62, 0x8 << 76 | 0x2 << 62


def purchase_id(user_id: str, sale_id: str, request_id: str) -> uuid.UUID:
    """The id of the purchase, its reservation and its hold: a UUIDv8 (RFC 9562) that begins as the sale's id does, 32
    bits, and goes on with 90 bits of a hash over the three, each after its length.

    The sale's purchases so lie side by side in every index by id: with ids scattered over all that were ever bought, a
    purchase cost a fifth more once there were a million (docs/performance.md). The lengths keep ("ab", "c") and
    ("a", "bc") apart. ``sale_id`` must be in canonical form already.
    """
    digest = blake2b(PURCHASE_NAMESPACE.bytes, digest_size=12)
    for part in (user_id, sale_id, request_id):
        octets = part.encode()
        digest.update(len(octets).to_bytes(4, "big") + octets)
    value = int.from_bytes(bytes.fromhex(sale_id[:8]) + digest.digest(), "big")
    return uuid.UUID(int=value & ~_VERSION_AND_VARIANT | _VERSION_8)


def fingerprint(request_id: str) -> int:
    """A short hash of a request id, 64 bits, by which the gateway knows that a request may already hold a unit.

    Two requests with the same fingerprint cost one needless look-up, never a wrong answer.
    """
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "big")


def partition_of(user_id: str, partitions: int) -> int:
    """The settlement partition of a user, 0 to ``partitions`` - 1: stable over processes and versions."""
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "big") % partitions
