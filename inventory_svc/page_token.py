"""Opaque page tokens: where the page before ended."""

import base64
import binascii
from datetime import datetime

from mesh.errors import invalid_argument
from mesh.validation import canonical_uuid


def token_of(*parts: str) -> str:
    """A token that carries these parts, none of which contains a newline."""
    return base64.urlsafe_b64encode("\n".join(parts).encode()).decode()


def _parts_of(token: str, count: int) -> list[str]:
    try:
        parts = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().split("\n")
    except (binascii.Error, UnicodeError) as error:
        raise _bad_token() from error
    if len(parts) != count:
        raise _bad_token()
    return parts


def id_of_token(token: str) -> str | None:
    """The id after which a page begins; None for the first page. Raises INVALID_ARGUMENT."""
    if not token:
        return None
    found = canonical_uuid(_parts_of(token, 1)[0])
    if found is None:
        raise _bad_token()
    return found


def time_and_id_of_token(token: str) -> tuple[datetime, str] | None:
    """The time and id after which a page begins; None for the first page. Raises INVALID_ARGUMENT."""
    if not token:
        return None
    time_text, id_text = _parts_of(token, 2)
    found = canonical_uuid(id_text)
    try:
        time = datetime.fromisoformat(time_text)
    except ValueError as error:
        raise _bad_token() from error
    if found is None or time.tzinfo is None:
        raise _bad_token()
    return time, found


def _bad_token() -> Exception:
    return invalid_argument(("page_token", "must be a next_page_token of this list"))
