"""Entity tags: what a client has already is not sent again (RFC 9110, sections 8.8.3 and 13.1.2)."""

from hashlib import blake2b

from gateway.problems import JSON, Answer

#: A cache may keep it, and asks each time whether it is still so.
REVALIDATED = ("cache-control", "no-cache")


def etag_of(octets: bytes) -> str:
    """The strong entity tag of a body."""
    return f'"{blake2b(octets, digest_size=10).hexdigest()}"'


def names(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match names ``etag``, compared weakly as RFC 9110, section 13.1.2, wants it."""
    if if_none_match is None:
        return False
    told = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return etag in told or "*" in told


def tagged_json(octets: bytes, if_none_match: str | None) -> Answer:
    """The answer to a read of what anybody may see: 200 with a body that is JSON already, or 304 for who has it."""
    etag = etag_of(octets)
    if names(if_none_match, etag):
        return Answer(304, [REVALIDATED, ("etag", etag)], b"")
    return Answer(200, [JSON, REVALIDATED, ("etag", etag)], octets)
