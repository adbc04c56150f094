"""The environment variables of a stack: what each service is told, and what commands and tests need to know."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from stack.certificates import SETTINGS as CERTIFICATE_SETTINGS
from stack.certificates import TRUST_DOMAIN, files_of
from stack.database_roles import AUDITOR, DATABASES, auditor_url, database_url, owner_url
from stack.errors import StackError
from stack.folder import StackFolder, locate
from stack.ports import Ports, metrics_of
from stack.postgres_server import admin_url
from stack.rabbitmq_server import ADMINISTRATOR, amqp_url
from stack.redis_server import redis_url
from stack.replicas import SERVICE_KINDS, Replicas, count_setting
from stack.secret_store import Secrets

_PASSED_ON = ("INVENTORY_", "BALANCE_", "PURCHASE_", "SETTLEMENT_", "GATEWAY_", "MESH_")
# Of secrets.env no line is a setting: a service is told in its URLs what it needs.
_NOT_PASSED_ON = ("_PORT", "_PASSWORD", *map(count_setting, SERVICE_KINDS))
# What each kind of process is given: never another's database, and the gateway no server at all.
_OWN_PREFIXES = {
    "inventory": ("INVENTORY_", "MESH_"),
    "balance": ("BALANCE_", "MESH_"),
    "purchase": ("PURCHASE_", "MESH_"),
    "settlement": ("PURCHASE_", "SETTLEMENT_", "MESH_"),
    "gateway": ("GATEWAY_", "MESH_"),
}
# With either the gateway checks tokens by public keys, and knows no secret of its own.
_KEYS_OF_TOKENS = ("GATEWAY_JWKS_FILE", "GATEWAY_JWKS_URL")
# What the services have, for commands and tests. A service told of it would be restarted by changes to others.
_ADDRESSES = ("INVENTORY_TARGET", "BALANCE_TARGET", "PURCHASE_TARGET", "GATEWAY_URL", "GATEWAY_URLS")
# Whether the services speak mutual TLS: on, unless this says off (for comparison).
TLS_SWITCH = "MESH_TLS"
_TRUST_DOMAIN = "MESH_TLS_TRUST_DOMAIN"
_SECRET_NAMES = ("PASSWORD", "SECRET")
_URL_WITH_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")
_OWNER = "OWNER_"
# The serving process's, whose user may do less and other things.
_NOT_FOR_SETTLEMENT = ("PURCHASE_AMQP_URL",)


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
        # Not one of a service's settings: only `migrate` is told of its own.
        **{f"{_OWNER}{name.upper()}_DATABASE_URL": owner_url(name, ports, secrets) for name in DATABASES},
        "INVENTORY_REDIS_URL": redis_url("inventory", ports, secrets),
        "PURCHASE_AMQP_URL": amqp_url("purchase", ports, secrets),
        "SETTLEMENT_AMQP_URL": amqp_url("settlement", ports, secrets),
        "PURCHASE_INVENTORY_TARGET": targets["inventory"],
        "PURCHASE_BALANCE_TARGET": targets["balance"],
        "GATEWAY_INVENTORY_TARGET": targets["inventory"],
        "GATEWAY_BALANCE_TARGET": targets["balance"],
        "GATEWAY_PURCHASE_TARGET": targets["purchase"],
        # The servers' administrators, and who may only look: for commands and tests.
        "REDIS_URL": redis_url("", ports, secrets),
        "AMQP_URL": amqp_url(ADMINISTRATOR, ports, secrets),
        "POSTGRES_ADMIN_URL": admin_url(ports, secrets),
        "POSTGRES_AUDITOR_URL": auditor_url(ports, secrets),
        "STACK_DIR": str(folder.path),
    }
    told = passed_on(settings)
    if any(told.get(name) for name in _KEYS_OF_TOKENS):
        # Whoever signs tokens is elsewhere: nobody here can make one.
        del computed["GATEWAY_JWT_SECRET"]
    if "SETTLEMENT_RATE_PER_S" in settings:
        # Who waits in line is told when their turn may come: at the pace at which purchases are settled.
        computed["PURCHASE_WAITLIST_RATE_PER_S"] = settings["SETTLEMENT_RATE_PER_S"]
    # As an operator. What a service process is told is its own (for_service).
    if uses_tls(told):
        computed |= files_of(folder.certificates, "operator").settings()
    return computed | told


def uses_tls(settings: Mapping[str, str]) -> bool:
    """Whether these settings ask for mutual TLS. Raises StackError for a switch that is neither on nor off, and for a
    trust domain that the certificates made here are not of: every service would refuse its own."""
    switch = settings.get(TLS_SWITCH, "") or "on"
    if switch not in ("on", "off"):
        raise StackError(f"{TLS_SWITCH} is {switch!r}, but must be on or off")
    if switch == "on" and (domain := settings.get(_TRUST_DOMAIN) or TRUST_DOMAIN) != TRUST_DOMAIN:
        raise StackError(
            f"{_TRUST_DOMAIN} is {domain!r}, but the certificates of a local stack are of {TRUST_DOMAIN!r}: leave it"
            " unset here, it is for certificates that come from elsewhere"
        )
    return switch == "on"


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings among these variables that reach the services."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_PASSED_ON)
        and not name.endswith(_NOT_PASSED_ON)
        and name not in _ADDRESSES
        and name not in CERTIFICATE_SETTINGS
    }


def for_service(kind: str, whole: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment that one kind of service process may know."""
    own = {name: value for name, value in passed_on(whole).items() if name.startswith(_OWN_PREFIXES[kind])}
    if whole.keys() >= CERTIFICATE_SETTINGS:
        own |= files_of(StackFolder(Path(whole["STACK_DIR"])).certificates, kind).settings()
    if kind == "settlement":
        own = {name: value for name, value in own.items() if name not in _NOT_FOR_SETTLEMENT}
    return own


def for_migration(name: str, whole: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment for migrating a service's database: as its owner, unknown to what serves."""
    prefix = name.upper()
    return {
        f"{prefix}_DATABASE_URL": whole[f"{_OWNER}{prefix}_DATABASE_URL"],
        f"{prefix}_APP_ROLE": name,
        f"{prefix}_AUDITOR_ROLE": AUDITOR,
    }


def masked(environment: Mapping[str, str]) -> dict[str, str]:
    """The same with every secret blotted out, fit to be printed."""
    return {
        name: "********" if name.endswith(_SECRET_NAMES) or _URL_WITH_PASSWORD.search(value) else value
        for name, value in environment.items()
    }


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
