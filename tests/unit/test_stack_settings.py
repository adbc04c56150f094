"""What the stack tells its services: settings of one that another must know too."""

from pathlib import Path

import pytest

from stack import environment
from stack.folder import StackFolder
from stack.ports import Ports
from stack.replicas import Replicas
from stack.secret_store import load_or_create


def built(tmp_path: Path, **settings: str) -> dict[str, str]:
    folder = StackFolder(tmp_path)
    secrets = load_or_create(tmp_path / "secrets")
    return environment.build(folder, Ports.from_environment({}), secrets, settings, Replicas.of_each(1))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, None),
        ({"SETTLEMENT_RATE_PER_S": "20"}, "20"),
        ({"SETTLEMENT_RATE_PER_S": "20", "PURCHASE_WAITLIST_RATE_PER_S": "5"}, "5"),
    ],
)
def test_who_waits_in_line_is_told_of_the_pace_of_settlement(
    tmp_path: Path, settings: dict[str, str], told: str | None
) -> None:
    assert environment.for_service("purchase", built(tmp_path, **settings)).get("PURCHASE_WAITLIST_RATE_PER_S") == told
