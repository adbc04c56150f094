"""The whole system under fault: two of every service, every connection through a proxy, every failpoint in reach."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import psycopg

from stack.private import private_stack
from stack.replicas import SERVICE_KINDS, Replicas
from stack.stack import Stack
from tests.faults.http_client import Address
from tests.faults.links import Links, proxied, upstreams
from tests.faults.small_disk import SmallDisk

T = TypeVar("T")

#: Slow enough for a fault to meet a settlement at work; times short enough for a suite of many faults. What bounds what
#: (a grant outlives the call that made it, a reservation the buyer's call) stays as in production.
SETTINGS = {
    "MESH_ENVIRONMENT": "test",
    "SETTLEMENT_RATE_PER_S": "150",
    "SETTLEMENT_BURST": "50",
    "SETTLEMENT_SWEEP_INTERVAL_MS": "500",
    "SETTLEMENT_STALE_AFTER_MS": "4000",
    "SETTLEMENT_ABANDONED_AFTER_MS": "5000",
    "SETTLEMENT_CALL_TIMEOUT_MS": "3000",
    "BALANCE_HOLD_TTL_S": "5",
    "INVENTORY_GRANT_AGE_MAX_MS": "9000",
    "INVENTORY_REAPER_PERIOD_MS": "1000",
    "GATEWAY_USER_RATE_PER_S": "50",
}


class World:
    """Starts everything on entering it and removes everything on leaving it. Methods of ``stack`` block: await them by
    ``off``. With ``clocks``, the libfaketime to use, the services' wall clocks can be set (``clock_of``)."""

    def __init__(
        self,
        *,
        seed: int,
        replicas: int = 2,
        clocks: Path | None = None,
        judges_times: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.judges_times = judges_times
        self._seed = seed
        self._clocks = clocks
        self._replicas = replicas
        self._settings = SETTINGS | dict(settings or {})
        self._exit = ExitStack()
        self._read_to: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self.failpoints = Path(tempfile.mkdtemp(prefix="flashsale-failpoints-"))
            exits.callback(shutil.rmtree, self.failpoints, ignore_errors=True)
            self._settings["MESH_FAILPOINTS_DIR"] = str(self.failpoints)
            replicas = Replicas.of_each(self._replicas)
            bare, lease = private_stack(self._settings, replicas=replicas)
            exits.callback(lease.close)
            exits.callback(bare.discard)
            self.disk = exits.enter_context(SmallDisk(bare.folder.postgres / "data"))
            bare.start("epmd", "redis", "postgres", "rabbitmq")
            bare.prepare_databases()
            _bound_the_log(bare.environment["POSTGRES_ADMIN_URL"])
            #: As it is without proxies: for whoever watches.
            self.environment = bare.environment
            self.links = exits.enter_context(Links(upstreams(self.environment), seed=self._seed))
            through = proxied(self.environment, self.links)
            self.gateways = [_address(url) for url in through["GATEWAY_URLS"].split(",")]
            extra = {kind: self._faked_clock(kind) for kind in SERVICE_KINDS} if self._clocks else {}
            self.stack = Stack(
                bare.folder,
                lease.ports,
                settings=self._settings | through,
                replicas=replicas,
                extra_environment=extra,
            )
            self.stack.start_services()
            self._exit = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def clock_of(self, kind: str) -> Path:
        """The file that says by how much the wall clocks of a kind of service are wrong: "+3600s"."""
        return self.failpoints / f".clock {kind}"

    def _faked_clock(self, kind: str) -> dict[str, str]:
        self.clock_of(kind).write_text("+0s\n")
        return {
            "LD_PRELOAD": str(self._clocks),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock_of(kind)),
            "FAKETIME_CACHE_DURATION": "1",
            # Timeouts are measured by the monotonic clock, which no operator can set.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def services(self) -> tuple[str, ...]:
        """The service processes by name."""
        return self.stack.service_names

    def new_log_lines(self) -> list[str]:
        """What the services have written since this was called last."""
        lines = []
        for name in self.services:
            path = self.stack.folder.log_file(name)
            with path.open("rb") as log:
                log.seek(self._read_to.get(name, 0))
                lines += log.read().decode(errors="replace").splitlines()
                self._read_to[name] = log.tell()
        return lines

    async def off(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs something that blocks in a thread, so that buyers and watcher go on."""
        return await asyncio.to_thread(work, *arguments)

    def arm(self, point: str, action: str = "kill") -> None:
        """The next process that comes to this failpoint is killed, or stopped."""
        draft = self.failpoints / f".{point}"
        draft.write_text(action)
        draft.rename(self.failpoints / point)

    def fired(self, point: str) -> list[int]:
        """Process ids that an armed point has taken."""
        return [int(path.suffix[1:]) for path in self.failpoints.glob(f"{point}.fired.*")]

    def disarm(self) -> list[str]:
        """Takes back what was armed; the points that had not fired, and forgets those that had."""
        waiting = [path.name for path in self._points()]
        for path in (*self._points(), *self.failpoints.glob("*.fired.*")):
            path.unlink(missing_ok=True)
        return waiting

    def _points(self) -> Iterator[Path]:
        names = list(self.failpoints.iterdir())
        return (path for path in names if ".fired." not in path.name and not path.name.startswith("."))

    def processes(self) -> dict[int, str]:
        """The services that run, by process id."""
        return {info.pid: info.name for info in self.stack.all_info() if info.name in self.services}


def _address(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _bound_the_log(admin_url: str) -> None:
    """Many sales' write-ahead log must not fill the small disk by itself."""
    with psycopg.connect(admin_url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET max_wal_size = '384MB'")
        conn.execute("SELECT pg_reload_conf()")


def is_root() -> bool:
    """Whether file systems can be mounted and clocks be faked for others."""
    return os.geteuid() == 0
