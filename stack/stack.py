"""The stack as a whole: every server and service of one folder, brought up, watched and brought down."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from stack import (
    broker_users,
    certificates,
    database_roles,
    environment,
    postgres_server,
    rabbitmq_server,
    redis_server,
    services,
)
from stack.errors import NotReadyError, StackError
from stack.folder import StackFolder, own_file
from stack.parts import Part
from stack.ports import Ports, refuse_taken
from stack.replicas import SERVICE_KINDS, Replicas, kind_and_index
from stack.secret_store import Secrets, load_or_create
from stack.services import log_tail
from stack.supervisor import ProcessInfo, Supervisor

SERVERS = ("epmd", "redis", "postgres", "rabbitmq")
_POLL_S = 0.05
#: A part that was started so often while we waited for it will not come up by waiting longer.
_STARTS_MAX = 3

Report = Callable[[str], None]


def _silent(line: str) -> None:
    """Reports to nobody."""


class Stack:
    """The servers and services of one folder on one set of ports. Its methods block; each is safe to repeat.

    `settings` are environment variables for the services (INVENTORY_..., SETTLEMENT_RATE_PER_S and so on);
    `extra_environment` has further ones, of any name, for the processes of one kind of service ({"inventory":
    {"LD_PRELOAD": ...}}), which go over all others and which no later command on the same folder knows of. `report` is
    told in a line what has just been done. Every method raises StackError with a message for people.
    """

    def __init__(
        self,
        folder: StackFolder,
        ports: Ports,
        *,
        settings: Mapping[str, str] | None = None,
        replicas: Replicas | None = None,
        extra_environment: Mapping[str, Mapping[str, str]] | None = None,
        report: Report = _silent,
    ) -> None:
        self.folder = folder
        self._ports = ports
        self._settings = dict(settings or {})
        self._replicas = replicas or Replicas()
        self._extra_environment = {kind: dict(extra) for kind, extra in (extra_environment or {}).items()}
        for kind in self._extra_environment.keys() - set(SERVICE_KINDS):
            raise StackError(f"there is no kind of service {kind!r}: the kinds are {', '.join(SERVICE_KINDS)}")
        self._report = report
        self._supervisor = Supervisor(folder)
        self._secrets: Secrets | None = None

    @property
    def service_names(self) -> tuple[str, ...]:
        """The service processes, in the order they are started."""
        return self._replicas.names()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of everything, secrets included."""
        return environment.build(self.folder, self._ports, self._known_secrets(), self._settings, self._replicas)

    def up(self) -> None:
        """Bring everything up. What runs already is left alone, except services whose settings have changed.

        Raises StackError, before anything is touched, for settings that contradict each other.
        """
        environment.uses_tls(self._settings)
        self.folder.create()
        with self._locked():
            self.folder.complete_file.unlink(missing_ok=True)
            self.open()
            self.start(*SERVERS)
            self._admit_services()
            self.prepare_databases()
            self.start_services()
            self.folder.complete_file.touch()

    def open(self, *, with_parent: bool = False) -> None:
        """Start supervisord, with nothing under it yet; see Supervisor.launch for `with_parent`."""
        self.folder.create()
        running = self._supervisor.is_running()
        refuse_taken(self._ports.listeners(self._replicas), self._listening() if running else ())
        self._prepare_servers()
        own_file(self.folder.environment_file, _as_json(self.environment))
        self._supervisor.configure(self._part(name) for name in (*SERVERS, *self.service_names))
        if running:
            self._supervisor.reload()
        else:
            self._supervisor.launch(services.base_environment(), with_parent=with_parent)

    def prepare_databases(self) -> None:
        """Make the services' roles and databases where they are missing."""
        database_roles.create(self._ports, self._known_secrets())

    def start_services(self) -> None:
        """Migrate the databases and start every service; restart those whose environment has changed."""
        self._ensure_certificates()
        whole = self.environment
        services.migrate(self.folder, whole)
        for name in self.service_names:
            before = self._service_environment(name)
            extra = self._extra_environment.get(kind_and_index(name)[0], {})
            services.write_environment(name, self.folder, self._ports, whole, extra)
            if before != self._service_environment(name) and self._supervisor.info(name).up:
                self._report(f"{name}: its settings have changed, so it is restarted")
                self._supervisor.stop(name)
        self.start(*self.service_names)

    def renew_certificates(self, *, every: bool = False) -> list[str]:
        """Make the certificates that are missing or near their end, or every one; the identities that got one.

        What runs goes over to them by itself. Nothing is made where the services speak in the clear.
        """
        self.folder.create()
        with self._locked():
            return self._ensure_certificates(every=every)

    def _ensure_certificates(self, *, every: bool = False) -> list[str]:
        if not environment.uses_tls(self._settings):
            return []
        return certificates.ensure(self.folder.certificates, renew=every)

    def start(self, *names: str) -> None:
        """Start parts and wait until each answers."""
        began = time.monotonic()
        fresh = set()
        for name in names:
            # RabbitMQ needs its port mapper at the moment it starts.
            if name == "rabbitmq":
                self.wait_ready("epmd")
            if not self._supervisor.info(name).up:
                fresh.add(name)
                self._supervisor.start(name)
        for name in names:
            self.wait_ready(name)
            age = f"ready after {time.monotonic() - began:.1f} s" if name in fresh else "was running already"
            self._report(f"{name:<12} 127.0.0.1:{self.port(name):<6} {age}")

    def stop(self, name: str) -> None:
        """Stop one part as an operator would, and wait for its end."""
        self._supervisor.stop(name)

    def port(self, name: str) -> int:
        """The port on which one part answers."""
        return self._part(name).port

    def pid(self, name: str) -> int:
        """The process id of one part; 0 while it does not run."""
        return self._supervisor.info(name).pid

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of one part. Raises StackError if it does not run."""
        pid = self.pid(name)
        try:
            # 0 would mean our own process group.
            if pid == 0:
                raise ProcessLookupError
            os.kill(pid, number)
        except ProcessLookupError:
            raise StackError(f"{name} is not running") from None

    def kill(self, name: str) -> float:
        """End one part with SIGKILL, and wait until supervisord has started it again and it answers; the seconds."""
        pid = self.pid(name)
        self.signal(name, signal.SIGKILL)
        return self.wait_restarted(name, pid, self._part(name).ready_within_s)

    def wait_restarted(self, name: str, old_pid: int, within_s: float) -> float:
        """Wait until another process than `old_pid` answers as this part; the seconds since this call.

        Raises StackError with the end of the part's log if none does within `within_s` seconds.
        """
        began = time.monotonic()
        while True:
            complaint = self.check(name)
            # Asked last: supervisord looks after its processes whenever it is asked something, so asking while the
            # part is away would hasten what is measured.
            if not complaint and self.pid(name) not in (0, old_pid):
                return time.monotonic() - began
            if time.monotonic() - began > within_s:
                seen = complaint or f"process {old_pid} still answers"
                tail = log_tail(self.folder, name)
                raise StackError(f"{name} was not back within {within_s:.0f} s ({seen}). The end of its log:\n{tail}")
            time.sleep(_POLL_S)

    def restart(self, name: str) -> None:
        """Stop and start one part."""
        self.stop(name)
        self.start(name)

    def control_broker(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints when it is given these arguments."""
        return rabbitmq_server.control(self._part("rabbitmq"), *arguments)

    def wait_ready(self, name: str) -> None:
        """Wait until a part answers what its clients ask. Raises StackError with the end of its log if it does not."""
        part = self._part(name)
        deadline = time.monotonic() + part.ready_within_s
        pids: set[int] = set()
        while True:
            try:
                part.check_ready()
                return
            except NotReadyError as error:
                info = self._supervisor.info(name)
                pids.add(info.pid)
                if not info.up or len(pids - {0}) > _STARTS_MAX or time.monotonic() > deadline:
                    tail = log_tail(self.folder, name)
                    raise StackError(f"{name} does not come up ({error}). The end of its log:\n{tail}") from None
            time.sleep(_POLL_S)

    def check(self, name: str) -> str:
        """Ask a part once whether it is ready: "" or what is wrong."""
        try:
            self._part(name).check_ready()
        except NotReadyError as error:
            return str(error)
        return ""

    def all_info(self) -> list[ProcessInfo]:
        """What supervisord knows of every part, in the order they are started."""
        order = {name: number for number, name in enumerate((*SERVERS, *self.service_names))}
        return sorted(self._supervisor.all_info(), key=lambda info: order.get(info.name, len(order)))

    def is_running(self) -> bool:
        """Whether supervisord runs, and so perhaps parts of the stack."""
        return self._supervisor.is_running()

    def down(self) -> bool:
        """Stop everything; False if nothing was running. Data and secrets stay."""
        if not self.folder.path.exists():
            return False
        with self._locked():
            self.folder.complete_file.unlink(missing_ok=True)
            if not self._supervisor.is_running():
                return False
            self._supervisor.shut_down()
            return True

    def remove(self) -> None:
        """Bring the stack down and remove its folder with all data and secrets."""
        self.down()
        self.folder.remove()

    def discard(self) -> None:
        """End everything at once, without letting anything finish, and remove the folder: for data nobody needs."""
        if self._supervisor.is_running():
            pids = [info.pid for info in self._supervisor.all_info() if info.pid]
            self._supervisor.shut_down(kill=pids)
        self.folder.remove()

    def _part(self, name: str) -> Part:
        folder, ports, secrets = self.folder, self._ports, self._known_secrets()
        match name:
            case "epmd":
                return rabbitmq_server.epmd_part(folder, ports)
            case "redis":
                return redis_server.part(folder, ports, secrets)
            case "postgres":
                return postgres_server.part(folder, ports, secrets)
            case "rabbitmq":
                return rabbitmq_server.part(folder, ports, secrets)
            case _ if name in self.service_names:
                tls = environment.uses_tls(self._settings)
                operator = certificates.files_of(folder.certificates, "operator") if tls else None
                return services.part(name, folder, ports, operator)
            case _:
                raise StackError(
                    f"there is no part {name!r}: the parts are {', '.join((*SERVERS, *self.service_names))}"
                )

    def _prepare_servers(self) -> None:
        secrets = self._known_secrets()
        redis_server.prepare(self.folder, self._ports, secrets)
        postgres_server.prepare(self.folder, secrets, self._ports)
        rabbitmq_server.prepare(self.folder, self._ports, broker_users.definitions_file(self.folder))
        broker_users.write_definitions(self.folder, secrets)

    def _admit_services(self) -> None:
        """Tell servers that were left running what their configuration has said of users since they were started."""
        secrets = self._known_secrets()
        redis_server.admit_services(self._ports, secrets)
        broker_started_s = time.time() - self._supervisor.info("rabbitmq").uptime_s
        told = broker_users.are_told(self.folder, broker_started_s)
        # Starting Erlang for a command takes seconds.
        if not told or not broker_users.are_admitted(self._ports, secrets):
            self.control_broker("import_definitions", str(broker_users.definitions_file(self.folder)))
            broker_users.note_told(self.folder)

    def _known_secrets(self) -> Secrets:
        if self._secrets is None:
            self._secrets = load_or_create(self.folder.secrets_file)
        return self._secrets

    def _listening(self) -> dict[str, int]:
        """What the running stack listens on. Raises StackError if we were told of other ports."""
        before = environment.read(self.folder)
        if Ports.from_environment(before) != self._ports:
            raise StackError("the stack is up on other ports: run make down first")
        return self._ports.listeners(Replicas.from_environment(before))

    def _service_environment(self, name: str) -> str:
        path = self.folder.service_environment_file(name)
        return path.read_text() if path.exists() else ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.folder.lock_file.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError("another make up, down or clean is at work on this stack") from None
            yield


def stack_as_started(folder: StackFolder, changes: Mapping[str, str] | None = None, report: Report = _silent) -> Stack:
    """The stack as it was last started, whatever this process's environment says, with these settings changed."""
    before = environment.read(folder)
    return Stack(
        folder,
        Ports.from_environment(before),
        settings=environment.passed_on(before) | dict(changes or {}),
        replicas=Replicas.from_environment(before),
        report=report,
    )


def _as_json(values: Mapping[str, str]) -> str:
    return json.dumps(values, indent=1) + "\n"
