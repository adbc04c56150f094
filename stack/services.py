"""The five services: how each process is started, and when it counts as healthy."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.settings import SettingsError
from stack import binaries
from stack.certificates import PeerFiles
from stack.environment import for_migration, for_service
from stack.errors import NotReadyError, StackError
from stack.folder import CHECKOUT, StackFolder, own_file
from stack.parts import Part, Program
from stack.peers import open_blocking_as
from stack.ports import LOOPBACK, Ports, metrics_of
from stack.replicas import kind_and_index

MIGRATED = ("inventory", "balance", "purchase")
_COMMANDS = {
    "inventory": ("inventory_svc", "serve"),
    "balance": ("balance_svc", "serve"),
    "purchase": ("purchase_svc", "serve"),
    "settlement": ("purchase_svc", "settle"),
    "gateway": ("gateway", "serve"),
}
# Lower starts earlier and stops later: who is called outlives who calls.
_PRIORITIES = {"inventory": 30, "balance": 30, "purchase": 40, "settlement": 50, "gateway": 60}
_MIGRATION_TIMEOUT_S = 120


def part(name: str, folder: StackFolder, ports: Ports, operator: PeerFiles | None) -> Part:
    """Describe the service process of this name; with the certificate of ``operator`` it is asked how it is."""
    kind, _ = kind_and_index(name)
    port = ports.port(name)
    module, verb = _COMMANDS[kind]
    command = (sys.executable, "-m", "stack.launch", str(folder.service_environment_file(name)), module, verb)
    program = Program(
        command=binaries.tied_to_parent(command),
        directory=CHECKOUT,
        priority=_PRIORITIES[kind],
        environment={"PYTHONPATH": python_path()},
        stop_wait_s=20,
    )
    return Part(name, port, program, _check(kind, port, operator), ready_within_s=60)


def write_environment(
    name: str, folder: StackFolder, ports: Ports, whole: Mapping[str, str], extra: Mapping[str, str]
) -> None:
    """Write down what a service process is told at its next start; `extra` goes over everything else."""
    kind, index = kind_and_index(name)
    own = base_environment() | for_service(kind, whole)
    if index > 0:
        own[f"{kind.upper()}_LISTEN"] = ports.address(name)
        own[f"{kind.upper()}_METRICS_LISTEN"] = ports.address(metrics_of(name))
    own_file(folder.service_environment_file(name), json.dumps(own | dict(extra), indent=1) + "\n")


def migrate(folder: StackFolder, whole: Mapping[str, str]) -> None:
    """Bring the three databases to the newest schema and their roles to their rights, side by side.

    Raises StackError with the log's end.
    """
    running = {}
    for name in MIGRATED:
        environment = base_environment() | for_migration(name, whole)
        with folder.log_file(f"migrate-{name}").open("w") as log:
            running[name] = subprocess.Popen(
                [sys.executable, "-m", f"{name}_svc", "migrate"],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    failed = [name for name, process in running.items() if _exit_code(process) != 0]
    for name in failed:
        raise StackError(f"{name}_svc migrate failed:\n{log_tail(folder, f'migrate-{name}')}")


def log_tail(folder: StackFolder, name: str, lines: int = 15) -> str:
    """The last lines a part has written."""
    path = folder.log_file(name)
    if not path.exists():
        return "  (it wrote nothing)"
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64 * 1024))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:]) or "  (it wrote nothing)"


def base_environment() -> dict[str, str]:
    """What any of our processes needs to run at all; nothing else of the caller's environment gets through.

    In particular no proxy setting: gRPC would send even loopback calls to a proxy.
    """
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
    grpc_settings = {name: value for name, value in os.environ.items() if name.startswith("GRPC_")}
    return {
        **kept,
        **grpc_settings,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
    }


def python_path() -> str:
    """Where the services' modules and the generated stubs are found."""
    return os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "gen")))


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_MIGRATION_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _check(kind: str, port: int, operator: PeerFiles | None) -> Callable[[], None]:
    return lambda: _check_http(port) if kind == "gateway" else _check_grpc(kind, port, operator)


def _check_grpc(kind: str, port: int, operator: PeerFiles | None) -> None:
    """Ask grpc.health.v1 for the server as a whole."""
    try:
        opened = open_blocking_as(operator, kind, f"{LOOPBACK}:{port}", [("grpc.enable_http_proxy", 0)])
    except SettingsError as error:
        # Missing, or just being replaced.
        raise NotReadyError(f"the operator's certificate: {error}") from error
    with opened as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=3)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise NotReadyError(f"health: {error.code().name}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise NotReadyError(f"health: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")


def _check_http(port: int) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotReadyError(f"GET /healthz: {error}") from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotReadyError(f"GET /healthz: {status}")
