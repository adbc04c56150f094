"""The environment variables of a stack: what each service is told, and what commands and tests need to know."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from stack.errors import StackError
from stack.folder import StackFolder, locate
from stack.ports import Ports, metrics_of
from stack.postgres_server import DATABASES, admin_url, database_url
from stack.rabbitmq_server import amqp_url
from stack.replicas import SERVICE_KINDS, Replicas, count_setting
from stack.secret_store import Secrets

_PASSED_ON = ("INVENTORY_", "BALANCE_", "PURCHASE_", "SETTLEMENT_", "GATEWAY_", "MESH_")
_NOT_PASSED_ON = ("_PORT", "_DATABASE_PASSWORD", *map(count_setting, SERVICE_KINDS))
# What each kind of process is given: never another's database, and the gateway no server at all.
_OWN_PREFIXES = {
    "inventory": ("INVENTORY_", "MESH_"),
    "balance": ("BALANCE_", "MESH_"),
    "purchase": ("PURCHASE_", "MESH_"),
    "settlement": ("PURCHASE_", "SETTLEMENT_", "MESH_"),
    "gateway": ("GATEWAY_", "MESH_"),
}
# What the services have, for commands and tests. A service told of it would be restarted by changes to others.
_ADDRESSES = ("INVENTORY_TARGET", "BALANCE_TARGET", "PURCHASE_TARGET", "GATEWAY_URL", "GATEWAY_URLS")
_SECRET_NAMES = ("PASSWORD", "SECRET", "DATABASE_URL", "REDIS_URL", "AMQP_URL", "ADMIN_URL")


def load(stack_dir: Path | None = None) -> dict[str, str]:
    """The environment of the running stack (by default the one that STACK_DIR or this checkout means).

    Raises StackError if the stack is not up.
    """
    folder = StackFolder(stack_dir) if stack_dir is not None else locate(os.environ)[0]
    if not folder.environment_file.exists() or not _answers(folder.supervisor_socket):
        raise StackError("the stack is not up: run make up")
    return read(folder)


def read(folder: StackFolder) -> dict[str, str]:
    """The environment a stack was last started with, whether or not it still runs."""
    values: dict[str, str] = json.loads(folder.environment_file.read_text())
    return values


def build(
    folder: StackFolder, ports: Ports, secrets: Secrets, settings: Mapping[str, str], replicas: Replicas
) -> dict[str, str]:
    """Work out the whole environment; `settings` of the services go over what is computed here."""
    targets = {kind: ports.target(kind, replicas) for kind in ("inventory", "balance", "purchase")}
    gateways = [f"http://{ports.address(name)}" for name in replicas.names("gateway")]
    redis_url = f"redis://:{secrets.redis_password}@{ports.address('redis')}/0"
    computed = {
        **ports.settings(),
        **replicas.settings(),
        **{f"{kind.upper()}_TARGET": target for kind, target in targets.items()},
        **{f"{kind.upper()}_LISTEN": ports.address(kind) for kind in SERVICE_KINDS},
        **{f"{kind.upper()}_METRICS_LISTEN": ports.address(metrics_of(kind)) for kind in SERVICE_KINDS},
        **{f"{name.upper()}_DATABASE_URL": database_url(name, ports, secrets) for name in DATABASES},
        "GATEWAY_URL": gateways[0],
        "GATEWAY_SOLE": str(len(gateways) == 1).lower(),
        "GATEWAY_URLS": ",".join(gateways),
        "GATEWAY_JWT_SECRET": secrets.gateway_jwt_secret,
        "INVENTORY_REDIS_URL": redis_url,
        "PURCHASE_AMQP_URL": amqp_url(ports, secrets),
        "PURCHASE_INVENTORY_TARGET": targets["inventory"],
        "PURCHASE_BALANCE_TARGET": targets["balance"],
        "GATEWAY_INVENTORY_TARGET": targets["inventory"],
        "GATEWAY_BALANCE_TARGET": targets["balance"],
        "GATEWAY_PURCHASE_TARGET": targets["purchase"],
        "REDIS_URL": redis_url,
        "AMQP_URL": amqp_url(ports, secrets),
        "POSTGRES_ADMIN_URL": admin_url(ports, secrets),
        "STACK_DIR": str(folder.path),
    }
    if "SETTLEMENT_RATE_PER_S" in settings:
        # Who waits in line is told when their turn may come: at the pace at which purchases are settled.
        computed["PURCHASE_WAITLIST_RATE_PER_S"] = settings["SETTLEMENT_RATE_PER_S"]
    return computed | passed_on(settings)


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings among these variables that reach the services."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_PASSED_ON) and not name.endswith(_NOT_PASSED_ON) and name not in _ADDRESSES
    }


def for_service(kind: str, whole: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment that one kind of service process may know."""
    return {name: value for name, value in passed_on(whole).items() if name.startswith(_OWN_PREFIXES[kind])}


def masked(environment: Mapping[str, str]) -> dict[str, str]:
    """The same with every secret blotted out, fit to be printed."""
    return {name: "********" if name.endswith(_SECRET_NAMES) else value for name, value in environment.items()}


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
