"""Which port every part listens on, and whether it is free."""

from __future__ import annotations

import random
import socket
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from stack.errors import StackError
from stack.replicas import REPLICAS_MAX, Replicas, kind_and_index

LOOPBACK = "127.0.0.1"
#: From a replica's port to that of the next one of its kind.
REPLICA_STEP = 100
_DEFAULT_BASE = 7000
_OFFSETS = {
    "inventory": 51,
    "balance": 52,
    "purchase": 53,
    "settlement": 54,
    "gateway": 80,
    "epmd": 369,
    "redis": 379,
    "postgres": 432,
    "amqp": 672,
    "rabbit_dist": 673,
    "inventory_metrics": 61,
    "balance_metrics": 62,
    "purchase_metrics": 63,
    "settlement_metrics": 64,
    "gateway_metrics": 90,
}
_PORT_MAX = 65535


@dataclass(frozen=True)
class Ports:
    """One port for each listener; for a service that of its first process, further ones are 100, 200, 300 above it."""

    inventory: int
    balance: int
    purchase: int
    settlement: int
    gateway: int
    epmd: int
    redis: int
    postgres: int
    amqp: int
    rabbit_dist: int
    inventory_metrics: int
    balance_metrics: int
    purchase_metrics: int
    settlement_metrics: int
    gateway_metrics: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Ports:
        """Read PORT_BASE (default 7000) and the ports set one by one, such as REDIS_PORT.

        Raises StackError naming the setting that is no port number.
        """
        base = _port(environ, "PORT_BASE", _DEFAULT_BASE)
        return cls(**{name: _port(environ, setting(name), base + offset) for name, offset in _OFFSETS.items()})

    def settings(self) -> dict[str, str]:
        """The environment variables that give exactly these ports."""
        return {setting(field.name): str(getattr(self, field.name)) for field in fields(self)}

    def port(self, name: str) -> int:
        """The port of a listener named as in this class, or of a further replica, such as `inventory-2`."""
        kind, index = kind_and_index(name)
        return int(getattr(self, kind)) + index * REPLICA_STEP

    def address(self, name: str) -> str:
        """`127.0.0.1:port` of the same."""
        return f"{LOOPBACK}:{self.port(name)}"

    def target(self, kind: str, replicas: Replicas) -> str:
        """The gRPC target of a service: `127.0.0.1:7051`, or a list of all its replicas for the client to choose from.

        The list is gRPC's `ipv4:127.0.0.1:7051,127.0.0.1:7151`.
        """
        addresses = [self.address(name) for name in replicas.names(kind)]
        return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"

    def listeners(self, replicas: Replicas) -> dict[str, int]:
        """Name -> port of everything that will listen."""
        services = replicas.names()
        names = dict.fromkeys((*(field.name for field in fields(self)), *services, *map(metrics_of, services)))
        return {name: self.port(name) for name in names}


def metrics_of(name: str) -> str:
    """The listener on which a service process shows its metrics: `inventory_metrics-2` for `inventory-2`."""
    kind, dash, number = name.partition("-")
    return f"{kind}_metrics{dash}{number}"


def setting(name: str) -> str:
    """The environment variable that moves the listener of this name."""
    return f"{kind_and_index(name)[0].upper()}_PORT"


def refuse_taken(ports: Mapping[str, int], running: Container[str] = ()) -> None:
    """Raise StackError naming every port that is taken, what wants it and the setting that moves it.

    The listeners named in `running` have their ports already.
    """
    complaints = []
    wanted_by: dict[int, str] = {}
    for name, port in ports.items():
        if port in wanted_by:
            complaints.append(
                f"port {port} is wanted by both {wanted_by[port]} and {name}: set {setting(name)} to another port"
            )
        elif port > _PORT_MAX:
            complaints.append(f"{name} wants port {port}, which does not exist: set {setting(name)} to a lower port")
        elif name not in running and not is_free(port):
            complaints.append(
                f"port {port}, wanted by {name}, is taken by another program: stop it, or set {setting(name)} "
                "to a free port (PORT_BASE moves all of them)"
            )
        wanted_by[port] = name
    if complaints:
        raise StackError("\n".join(complaints))


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of an earlier run in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class PortLease:
    """Free ports for a whole stack that no other test run on this machine takes while the lease is open.

    The claim is an abstract Unix socket named after the first port: it belongs to the same network namespace as
    the ports, needs no file, and vanishes with the process that holds it, however that ends.
    """

    def __init__(self) -> None:
        """Take random free ports, for as many replicas as there can be; raises StackError when there are none."""
        for first in _first_ports():
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0flashsale-ports-{first}")
            except OSError:
                claim.close()
                continue
            ports = Ports(**{name: first + index for index, name in enumerate(_OFFSETS)})
            if all(is_free(port) for port in ports.listeners(Replicas.of_each(REPLICAS_MAX)).values()):
                self._claim = claim
                self.ports = ports
                return
            claim.close()
        raise StackError("no free block of ports was found for a private stack")

    def close(self) -> None:
        """Give the ports back."""
        self._claim.close()


def _first_ports() -> Iterator[int]:
    """First ports of leases below the ephemeral range, where no outgoing connection can sit on a port, in random order.

    Leases lie side by side within a replica's step, and all their replicas in the steps above: none meets another.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # A machine whose ephemeral range begins low leaves too little room below it; then luck has to do.
    start, end = (low - 12_000, low) if low >= 22_000 else (20_000, 32_000)
    band = REPLICA_STEP * REPLICAS_MAX
    firsts = [
        first + column
        for first in range(start, end - band + 1, band)
        for column in range(0, REPLICA_STEP - len(_OFFSETS) + 1, len(_OFFSETS))
    ]
    random.shuffle(firsts)
    yield from firsts


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "") or str(default)
    if not text.isdecimal() or not 1024 <= int(text) <= _PORT_MAX:
        raise StackError(f"{name} is {text!r}, but must be a port number from 1024 to {_PORT_MAX}")
    return int(text)
