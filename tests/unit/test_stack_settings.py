"""What the stack tells its services: settings of one that another must know too."""

from pathlib import Path

import pytest

from stack import environment
from stack.errors import StackError
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


@pytest.mark.parametrize("domain", ["", "flashsale"])
def test_the_trust_domain_of_the_local_certificates_may_be_named(tmp_path: Path, domain: str) -> None:
    told = environment.for_service("purchase", built(tmp_path, MESH_TLS_TRUST_DOMAIN=domain))
    assert told["MESH_TLS_TRUST_DOMAIN"] == domain
    assert "MESH_TLS_KEY" in told


def test_another_trust_domain_than_that_of_the_local_certificates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"MESH_TLS_TRUST_DOMAIN is 'acme', but .* are of 'flashsale'"):
        built(tmp_path, MESH_TLS_TRUST_DOMAIN="acme")
    # In the clear it says nothing about anybody.
    assert "MESH_TLS_KEY" not in built(tmp_path, MESH_TLS_TRUST_DOMAIN="acme", MESH_TLS="off")
