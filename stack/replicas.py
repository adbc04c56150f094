"""How many processes of each service run, and what each is called: inventory, inventory-2, inventory-3 ..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stack.errors import StackError

#: In the order they are started: who is called comes before who calls.
SERVICE_KINDS = ("inventory", "balance", "purchase", "settlement", "gateway")
REPLICAS_MAX = 4


@dataclass(frozen=True)
class Replicas:
    """The number of processes of each kind of service, 1 to 4. Raises StackError for any other number."""

    inventory: int = 1
    balance: int = 1
    purchase: int = 1
    settlement: int = 1
    gateway: int = 1

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for kind in SERVICE_KINDS:
            _check(kind, str(self.count(kind)))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Replicas:
        """Read INVENTORY_REPLICAS and so on, and SETTLEMENT_WORKERS. Raises StackError naming the one that is wrong."""
        texts = {kind: environ.get(count_setting(kind), "") or "1" for kind in SERVICE_KINDS}
        return cls(**{kind: _check(kind, text) for kind, text in texts.items()})

    @classmethod
    def of_each(cls, count: int) -> Replicas:
        """As many of every kind."""
        return cls(**dict.fromkeys(SERVICE_KINDS, count))

    def settings(self) -> dict[str, str]:
        """The environment variables that ask for exactly these numbers."""
        return {count_setting(kind): str(self.count(kind)) for kind in SERVICE_KINDS}

    def count(self, kind: str) -> int:
        """How many of this kind."""
        return int(getattr(self, kind))

    def names(self, *kinds: str) -> tuple[str, ...]:
        """The processes of these kinds, or of all, in the order they are started."""
        return tuple(
            f"{kind}-{index + 1}" if index else kind
            for kind in kinds or SERVICE_KINDS
            for index in range(self.count(kind))
        )


def count_setting(kind: str) -> str:
    """The environment variable that says how many of this kind run."""
    return "SETTLEMENT_WORKERS" if kind == "settlement" else f"{kind.upper()}_REPLICAS"


def kind_and_index(name: str) -> tuple[str, int]:
    """What kind a process of this name is, and which of its kind, from 0."""
    kind, _, number = name.partition("-")
    return kind, int(number) - 1 if number else 0


def _check(kind: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= REPLICAS_MAX:
        raise StackError(f"{count_setting(kind)} is {text!r}, but must be a number from 1 to {REPLICAS_MAX}")
    return int(text)
