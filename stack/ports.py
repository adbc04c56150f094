"""Which port every part listens on, and whether it is free."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from stack.errors import StackError

LOOPBACK = "127.0.0.1"
SETTLEMENT_WORKERS_MAX = 4
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
}
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class Ports:
    """One port for each listener; `settlement` is the first of up to four, one for each worker."""

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

    def address(self, name: str) -> str:
        """`127.0.0.1:port` of a listener named as in this class."""
        return f"{LOOPBACK}:{getattr(self, name)}"

    def listeners(self, settlement_workers: int = 1) -> dict[str, int]:
        """Name -> port of everything that will listen, the extra settlement workers included."""
        ports: dict[str, int] = {field.name: getattr(self, field.name) for field in fields(self)}
        for index in range(1, settlement_workers):
            ports[f"settlement-{index + 1}"] = self.settlement + index
        return ports


def setting(name: str) -> str:
    """The environment variable that moves the listener of this name."""
    return f"{name.removesuffix('-2').removesuffix('-3').removesuffix('-4').upper()}_PORT"


def settlement_workers(environ: Mapping[str, str]) -> int:
    """How many settlement workers SETTLEMENT_WORKERS asks for. Raises StackError when it is no such number."""
    text = environ.get("SETTLEMENT_WORKERS", "") or "1"
    if not text.isdecimal() or not 1 <= int(text) <= SETTLEMENT_WORKERS_MAX:
        raise StackError(f"SETTLEMENT_WORKERS is {text!r}, but must be a number from 1 to {SETTLEMENT_WORKERS_MAX}")
    return int(text)


def refuse_taken(ports: Mapping[str, int]) -> None:
    """Raise StackError naming every port that is taken, what wants it and the setting that moves it."""
    complaints = []
    wanted_by: dict[int, str] = {}
    for name, port in ports.items():
        if port in wanted_by:
            complaints.append(
                f"port {port} is wanted by both {wanted_by[port]} and {name}: set {setting(name)} to another port"
            )
        elif not is_free(port):
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
    """A block of free ports that no other test run on this machine takes while the lease is open.

    The claim is an abstract Unix socket named after the block: it belongs to the same network namespace as
    the ports, needs no file, and vanishes with the process that holds it, however that ends.
    """

    def __init__(self) -> None:
        """Take a random free block; raises StackError when there is none."""
        for first in _blocks():
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0flashsale-ports-{first}")
            except OSError:
                claim.close()
                continue
            if all(is_free(port) for port in range(first, first + _BLOCK_SIZE)):
                self._claim = claim
                self.ports = _ports_of_block(first)
                return
            claim.close()
        raise StackError("no free block of ports was found for a private stack")

    def close(self) -> None:
        """Give the block back."""
        self._claim.close()


def _ports_of_block(first: int) -> Ports:
    # Settlement comes last: its further workers use the ports after its own.
    names = sorted(_OFFSETS, key=lambda name: name == "settlement")
    return Ports(**{name: first + index for index, name in enumerate(names)})


def _blocks() -> Iterator[int]:
    """Blocks below the ephemeral range, where no outgoing connection can sit on a port, in random order."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # A machine whose ephemeral range begins low leaves too little room below it; then luck has to do.
    start, end = (low - 12_000, low) if low >= 22_000 else (20_000, 32_000)
    firsts = list(range(start, end - _BLOCK_SIZE, _BLOCK_SIZE))
    random.shuffle(firsts)
    yield from firsts


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "") or str(default)
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise StackError(f"{name} is {text!r}, but must be a port number from 1024 to 65535")
    return int(text)
