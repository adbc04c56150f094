"""Page tokens of lists (AIP-158): where a page ended, together with what was listed, in a form callers cannot read
anything into."""

import base64
import binascii
import json
from collections.abc import Sequence

from mesh.errors import DomainError, invalid_argument
from mesh.validation import canonical_uuid

PAGE_SIZE_DEFAULT = 1_000
PAGE_SIZE_MAX = 10_000
#: Longer than any token given out: two names of 128 characters each, four bytes to a character.
_LENGTH_MAX = 4_096


def page_size(asked: int, *, default: int = PAGE_SIZE_DEFAULT, most: int = PAGE_SIZE_MAX) -> int:
    """Rows of a page: ``default`` when 0 is asked for, never more than ``most``. A negative number is
    INVALID_ARGUMENT."""
    if asked < 0:
        raise invalid_argument(("page_size", "must be 0 or more"))
    return min(asked or default, most)


def encode(listing: Sequence[str], last: Sequence[str]) -> str:
    """A token: ``listing`` names the list and its filters, ``last`` the key of the last row given."""
    text = json.dumps([list(listing), list(last)], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(token: str, listing: Sequence[str], parts: int) -> list[str] | None:
    """The key a token carries, ``parts`` strings; None for the empty token.

    Raises INVALID_ARGUMENT for a token that was not given out for this list with these filters.
    """
    if not token:
        return None
    if len(token) > _LENGTH_MAX:
        raise wrong_token()
    try:
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise wrong_token() from None
    if not isinstance(content, list) or len(content) != 2 or content[0] != list(listing):
        raise wrong_token()
    last = content[1]
    if not isinstance(last, list) or len(last) != parts or not all(isinstance(part, str) for part in last):
        raise wrong_token()
    if any("\0" in part for part in last):
        raise wrong_token()
    return last


def decode_id(token: str, listing: Sequence[str]) -> str | None:
    """As ``decode``, for lists that are ordered by a UUID alone: it in canonical form, or None."""
    last = decode(token, listing, 1)
    if last is None:
        return None
    canonical = canonical_uuid(last[0])
    if canonical is None:
        raise wrong_token()
    return canonical


def wrong_token() -> DomainError:
    """The error for a token that cannot be ours."""
    return invalid_argument(("page_token", "must be the next_page_token of the same list with the same filters"))
