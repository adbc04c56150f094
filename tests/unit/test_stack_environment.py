"""Which process is told of which secret, before anything runs."""

from dataclasses import fields
from pathlib import Path

import pytest

from stack import environment
from stack.folder import StackFolder
from stack.ports import Ports
from stack.replicas import SERVICE_KINDS, Replicas
from stack.secret_store import Secrets

SECRETS = Secrets(**{field.name: f"<{field.name}>" for field in fields(Secrets)})
WHOLE = environment.build(StackFolder(Path("/nowhere")), Ports.from_environment({}), SECRETS, {}, Replicas())
OWN = {
    "inventory": {"inventory_database_password", "inventory_redis_password"},
    "balance": {"balance_database_password"},
    "purchase": {"purchase_database_password", "purchase_amqp_password"},
    "settlement": {"purchase_database_password", "settlement_amqp_password"},
    "gateway": {"gateway_jwt_secret"},
}


def found_in(values: dict[str, str]) -> set[str]:
    text = "\n".join(values.values())
    return {field.name for field in fields(Secrets) if f"<{field.name}>" in text}


@pytest.mark.parametrize("kind", SERVICE_KINDS)
def test_a_process_that_serves_is_told_its_own_secrets_only(kind: str) -> None:
    assert found_in(environment.for_service(kind, WHOLE)) == OWN[kind]


@pytest.mark.parametrize("name", ["inventory", "balance", "purchase"])
def test_only_migration_is_told_how_to_be_the_owner(name: str) -> None:
    told = environment.for_migration(name, WHOLE)
    assert found_in(told) == {f"{name}_owner_password"}
    assert told[f"{name.upper()}_APP_ROLE"] == name


def test_a_line_of_the_secrets_file_is_no_setting() -> None:
    """Somebody who reads secrets.env into a shell and runs make up there gives nothing away."""
    lines = {field.name.upper(): f"<{field.name}>" for field in fields(Secrets) if field.name.endswith("password")}
    assert len(lines) > 10
    assert environment.passed_on(lines) == {}


@pytest.mark.parametrize("name", ["GATEWAY_JWKS_FILE", "GATEWAY_JWKS_URL"])
def test_a_gateway_that_checks_by_public_keys_has_no_secret(name: str) -> None:
    folder, ports = StackFolder(Path("/nowhere")), Ports.from_environment({})
    whole = environment.build(folder, ports, SECRETS, {name: "keys"}, Replicas())
    told = environment.for_service("gateway", whole)
    assert (told[name], found_in(told)) == ("keys", set())


def test_what_is_printed_shows_no_secret() -> None:
    assert found_in(WHOLE) == {field.name for field in fields(Secrets)}
    shown = environment.masked(WHOLE)
    assert found_in(shown) == set()
    assert shown["GATEWAY_URL"] == WHOLE["GATEWAY_URL"]
