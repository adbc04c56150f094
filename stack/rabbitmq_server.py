"""The private RabbitMQ with a port mapper (epmd) of its own: password, loopback only, all folders its own."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from pamqp import base, commands, exceptions, frame

from stack import binaries
from stack.errors import NotReadyError, StackError
from stack.folder import StackFolder, own_dir, own_file, server_user
from stack.parts import Part, Program
from stack.ports import LOOPBACK, Ports
from stack.secret_store import Secrets

#: For the stack itself, tests and repairs; no service gets it.
ADMINISTRATOR = "flashsale"
#: Longest that a command to the broker may take: an Erlang machine is started for each, seconds.
_CONTROL_S_MAX = 30.0

_CONFIG = """\
# Written by `make up`; changes are lost.
listeners.tcp.1 = {host}:{port}
# The users, read at every start. With it no guest is made.
load_definitions = {definitions}
heartbeat = 10
# Publishers are blocked, not lost, beyond these marks.
vm_memory_high_watermark.relative = 0.25
disk_free_limit.absolute = 200MB
# The quorum queues' log is held in memory up to this size; the default of 512 MB is for dedicated machines.
raft.wal_max_size_bytes = 67108864
log.console = true
log.console.level = info
log.file = false
"""

# Idle schedulers sleep instead of spinning; the distribution listens on loopback only.
_ERLANG_ARGUMENTS = "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"


def part(folder: StackFolder, ports: Ports, secrets: Secrets) -> Part:
    """Describe the RabbitMQ server."""
    home = folder.rabbitmq
    environment = {
        "HOME": str(home / "home"),
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(ports.epmd),
        # For every Erlang program, also the one that RabbitMQ runs at its start for the sake of starting a port mapper:
        # that would take the port of ours while it is being restarted, and outlive us all.
        "ERL_AFLAGS": "-start_epmd false",
        "ERL_CRASH_DUMP_SECONDS": "0",
        # Makes the script become the Erlang machine, so that supervisord signals that and no shell before it.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": f"flashsale_{folder.tag}@localhost",
        "RABBITMQ_DIST_PORT": str(ports.rabbit_dist),
        "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_PLUGINS_EXPAND_DIR": str(home / "plugins-expand"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "config"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG_ARGUMENTS,
    }
    program = Program(
        command=binaries.tied_to_parent((str(binaries.rabbitmq_server()),)),
        directory=home / "home",
        priority=20,
        user=server_user("rabbitmq"),
        environment=environment,
        stop_wait_s=30,
    )

    def check_ready() -> None:
        log_in(ports.amqp, ADMINISTRATOR, password_of(ADMINISTRATOR, secrets))

    return Part("rabbitmq", ports.amqp, program, check_ready, ready_within_s=90)


def control(broker: Part, *arguments: str) -> str:
    """What `rabbitmqctl` prints when it is given these arguments. Raises StackError with what it says when it fails."""
    user = broker.program.user
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    environment = {**broker.program.environment, "PATH": os.environ["PATH"]}
    command = [*as_user, str(binaries.rabbitmqctl()), "-n", environment["RABBITMQ_NODENAME"], *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_CONTROL_S_MAX, check=True
        )
    except subprocess.CalledProcessError as error:
        raise StackError(f"rabbitmqctl {arguments[0]} failed: {error.stderr.strip() or error.stdout.strip()}") from None
    except subprocess.TimeoutExpired:
        raise StackError(f"rabbitmqctl {arguments[0]} did not end within {_CONTROL_S_MAX:.0f} s") from None
    return done.stdout


def epmd_part(folder: StackFolder, ports: Ports) -> Part:
    """Describe the port mapper, without which an Erlang node does not start.

    RabbitMQ may not start one by itself, which would stay behind for ever; without this one it ends, and tries again.
    """
    program = Program(
        command=binaries.tied_to_parent((str(binaries.epmd()), "-address", LOOPBACK, "-port", str(ports.epmd))),
        directory=folder.rabbitmq,
        priority=1,
        user=server_user("rabbitmq"),
    )

    def check_ready() -> None:
        try:
            socket.create_connection((LOOPBACK, ports.epmd), timeout=2).close()
        except OSError as error:
            raise NotReadyError(f"connect: {error}") from error

    return Part("epmd", ports.epmd, program, check_ready, ready_within_s=15)


def prepare(folder: StackFolder, ports: Ports, definitions: Path) -> None:
    """Write the configuration and make the folders."""
    user = server_user("rabbitmq")
    home = folder.rabbitmq
    own_dir(home, user)
    for name in ("home", "mnesia", "plugins-expand", "config", "log"):
        own_dir(home / name, user)
    text = _CONFIG.format(host=LOOPBACK, port=ports.amqp, definitions=definitions)
    own_file(home / "rabbitmq.conf", text, user)
    own_file(home / "enabled_plugins", "[].\n", user)
    # Present but empty, so that the system's own settings in /etc/rabbitmq are not read.
    own_file(home / "rabbitmq-env.conf", "", user)


def amqp_url(user: str, ports: Ports, secrets: Secrets) -> str:
    """The connection of one user."""
    return f"amqp://{user}:{password_of(user, secrets)}@{ports.address('amqp')}/"


def password_of(user: str, secrets: Secrets) -> str:
    """The password of the administrator or of a service's user."""
    return secrets.amqp_password if user == ADMINISTRATOR else str(getattr(secrets, f"{user}_amqp_password"))


def log_in(port: int, user: str, password: str) -> None:
    """Log in and open the virtual host, as a client would (AMQP 0-9-1, section 2.2.4). Raises NotReadyError."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            _expect(connection, commands.Connection.Start)
            response = f"\0{user}\0{password}"
            _send(
                connection,
                commands.Connection.StartOk(mechanism="PLAIN", response=response, locale="en_US"),
            )
            tune = _expect(connection, commands.Connection.Tune)
            assert isinstance(tune, commands.Connection.Tune)
            limits = commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0)
            _send(connection, limits)
            _send(connection, commands.Connection.Open(virtual_host="/"))
            _expect(connection, commands.Connection.OpenOk)
            _send(connection, commands.Connection.Close(200, "", 0, 0))
            _expect(connection, commands.Connection.CloseOk)
    except (OSError, exceptions.PAMQPException) as error:
        raise NotReadyError(f"AMQP: {error}") from error


def _send(connection: socket.socket, method: base.Frame) -> None:
    connection.sendall(frame.marshal(method, 0))


def _expect(connection: socket.socket, kind: type[base.Frame]) -> object:
    header = _receive(connection, 7)
    body = _receive(connection, int.from_bytes(header[3:7], "big") + 1)
    _, _, method = frame.unmarshal(header + body)
    if not isinstance(method, kind):
        raise NotReadyError(f"AMQP: wanted {kind.__name__}, got {method}")
    return method


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise NotReadyError("AMQP: the server hung up (wrong user or password, or still starting)")
        data += chunk
    return data
