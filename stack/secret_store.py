"""The secrets of one installation: made once, kept in one file that only its owner can read."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from pathlib import Path

from stack.folder import own_file


@dataclass(frozen=True, repr=False)
class Secrets:
    """Every secret of a stack. Not printable, so that none reaches a log by accident."""

    # The servers' administrators: for the stack itself, tests and repairs. No service is told of them.
    redis_password: str
    amqp_password: str
    postgres_password: str
    # Who owns a service's tables and migrates them, as whom the service serves, and who may look at everything.
    inventory_owner_password: str
    balance_owner_password: str
    purchase_owner_password: str
    inventory_database_password: str
    balance_database_password: str
    purchase_database_password: str
    auditor_database_password: str
    inventory_redis_password: str
    purchase_amqp_password: str
    settlement_amqp_password: str
    gateway_jwt_secret: str


def load_or_create(path: Path) -> Secrets:
    """Read the secrets, first making those that the file does not have."""
    known = _read(path)
    # Hexadecimal, so that no URL, shell or configuration file ever has to quote one. 256 bits each.
    values = {field.name: known.get(field.name.upper()) or secrets.token_hex(32) for field in fields(Secrets)}
    if {name.upper(): value for name, value in values.items()} != known:
        lines = [f"{name.upper()}={value}\n" for name, value in values.items()]
        own_file(path, "".join(lines))
    return Secrets(**values)


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in pairs}
