"""Checks of what clients send. Collects every violation, so that a caller learns all of them at once."""

import uuid

from mesh.errors import invalid_argument

#: Largest amount of money in one request, minor units.
AMOUNT_MINOR_MAX = 1_000_000_000_000
#: Most characters of a user id or request id.
ID_LENGTH_MAX = 128


def canonical_uuid(text: str) -> str | None:
    """``text`` as canonical lower-case UUID text, or None if it is no UUID in that form (36 characters)."""
    if len(text) != 36:
        return None
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        return None
    # Python also reads hyphens anywhere, braces, and digits with underscores between them.
    return canonical if canonical == text.lower() else None


def is_name(text: str) -> bool:
    """Whether ``text`` can be a user id or request id: 1 to 128 printable characters, no space at the ends."""
    return 0 < len(text) <= ID_LENGTH_MAX and text.isprintable() and text == text.strip()


class Violations:
    """Gathers (field, description) pairs; ``raise_if_any`` turns them into INVALID_ARGUMENT."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, field: str, description: str) -> None:
        """Notes that ``field`` is wrong."""
        self.found.append((field, description))

    def name(self, field: str, text: str) -> str:
        """Requires a user id or request id."""
        if not is_name(text):
            self.add(field, f"must be 1 to {ID_LENGTH_MAX} printable characters without space at the ends")
        return text

    def uuid(self, field: str, text: str) -> str:
        """Requires a UUID; returns it in canonical form."""
        canonical = canonical_uuid(text)
        if canonical is None:
            self.add(field, "must be a UUID such as 6f0d1b52-3f6e-5c0e-9a55-7c1f2f1d9b3a")
        return canonical or ""

    def integer(self, field: str, value: int, low: int, high: int) -> int:
        """Requires ``low`` <= value <= ``high``."""
        if not low <= value <= high:
            self.add(field, f"must be {low} to {high}, is {value}")
        return value

    def currency(self, field: str, code: str) -> str:
        """Requires an ISO 4217 code."""
        if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
            self.add(field, "must be three capital letters such as EUR")
        return code

    def raise_if_any(self) -> None:
        """Raises INVALID_ARGUMENT when anything was found."""
        if self.found:
            raise invalid_argument(*self.found)
