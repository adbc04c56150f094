"""Settings: one frozen dataclass per process, read once from the environment.

>>> @dataclass(frozen=True)
... class Settings:
...     listen: str = setting("host:port to serve on", default="127.0.0.1:7051")
...     pool_max: int = setting("most SQL connections", default=8, minimum=1, maximum=100)
>>> read_settings(Settings, "INVENTORY_", {"INVENTORY_POOL_MAX": "4"}).pool_max
4
"""

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

# A URL with a password (RFC 3986; libpq takes several hosts). The drivers cut what is none in odd places, and
# then name a piece of the password as the host or port that is wrong.
_USER, _HOST = r"(?:[^\s:/?#\[\]@%]|%[0-9A-Fa-f]{2})*", r"(?:\[[^\s/?#\[\]@]*\]|[^\s:/?#\[\]@]*)(?::\d*)?"
_URL = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_USER}(?::{_USER})*@)?{_HOST}(?:,{_HOST})*(?:/[^\s?#@]*)?(?:\?[^\s#]*)?")

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that names it."""


def setting(
    help_text: str,
    *,
    default: Any = MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    env: str | None = None,
    secret: bool = False,
) -> Any:
    """Declares a field of a settings dataclass.

    The variable is the process's prefix and the field's name in capitals, unless ``env`` names another. A field
    without ``default`` must be set. ``minimum`` and ``maximum`` bound numbers, both inclusive. The value of a
    ``secret`` is left out of error messages and of the dataclass's repr; if it is a URL, it must be a sound one.
    """
    metadata = {"help": help_text, "minimum": minimum, "maximum": maximum, "env": env, "secret": secret}
    return field(default=default, metadata=metadata, repr=not secret)


def _convert(name: str, kind: Any, text: str, secret: bool) -> Any:
    shown = "its value" if secret else repr(text)
    try:
        if kind is bool:
            if text.lower() in _TRUE | _FALSE:
                return text.lower() in _TRUE
            raise ValueError("expected true or false")
        return kind(text)
    except ValueError as error:
        expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))
        raise SettingsError(f"{name}: {shown} is not {expected}") from error


def _read_field(item: "Field[Any]", kind: Any, prefix: str, env: Mapping[str, str]) -> Any:
    name = item.metadata.get("env") or prefix + item.name.upper()
    text = env.get(name, "")
    if text == "":
        if item.default is MISSING:
            raise SettingsError(f"{name}: not set ({item.metadata.get('help', item.name)})")
        return item.default
    secret = item.metadata.get("secret", False)
    if secret and "://" in text and name.endswith("_URL") and not _URL.fullmatch(text):
        raise SettingsError(
            f"{name}: its value is no URL; in a password write / ? # [ ] @ % and spaces as %2F and so on"
        )
    value = _convert(name, kind, text, secret)
    low, high = item.metadata.get("minimum"), item.metadata.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        raise SettingsError(f"{name}: {value} is not between {low} and {high}")
    return value


def read_settings(cls: type[T], prefix: str, env: Mapping[str, str] = os.environ) -> T:
    """Makes a ``cls`` (a dataclass whose fields are str, int, float or bool) from ``env``.

    Raises SettingsError naming the first variable that is missing or wrong. An empty variable counts as not set.
    A ``__post_init__`` of the dataclass may raise SettingsError too, for rules that span fields.
    """
    kinds = get_type_hints(cls)
    values = {item.name: _read_field(item, kinds[item.name], prefix, env) for item in fields(cls)}  # type: ignore[arg-type]
    return cls(**values)
