"""supervisord: its configuration, and the conversation with it over its control socket."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from supervisor import xmlrpc as supervisor_xmlrpc
from supervisor.states import ProcessStates

from stack import binaries
from stack.errors import StackError
from stack.folder import StackFolder, own_file
from stack.parts import Part

_START_TIMEOUT_S = 15.0
_POLL_S = 0.05
_UP = (ProcessStates.STARTING, ProcessStates.RUNNING, ProcessStates.BACKOFF)
_ENDED = (ProcessStates.STOPPED, ProcessStates.EXITED, ProcessStates.FATAL)
# supervisor.xmlrpc.Faults: what is asked for is so already.
_ALREADY_STARTED, _NOT_RUNNING = 60, 70

_CONFIG = """\
; Written by `make up`; changes are lost.
[supervisord]
nodaemon = true
{user}logfile = {folder}/log/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = {folder}/supervisord.pid
minfds = 1024

[unix_http_server]
file = {folder}/supervisord.sock
chmod = 0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

_PROGRAM = """
[program:{name}]
command = {command}
directory = {directory}
priority = {priority}
{user}environment = {environment}
autostart = false
autorestart = true
; What ends within a second of its start waits for that second to pass (stack/supervisord.py), and is never given up.
startsecs = 1
startretries = 1000000000
stopsignal = {stop_signal}
stopwaitsecs = {stop_wait_s}
killasgroup = {kill_group}
redirect_stderr = true
stdout_logfile = {log}
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 1
"""


@dataclass(frozen=True)
class ProcessInfo:
    """What supervisord knows of a process."""

    name: str
    up: bool
    pid: int
    """0 unless it runs."""
    uptime_s: int
    state: str


class Supervisor:
    """The supervisord of one stack folder."""

    def __init__(self, folder: StackFolder) -> None:
        self._folder = folder
        # Kept so that it is waited for if it ends while we live; otherwise it outlives this process on purpose.
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, parts: Iterable[Part]) -> None:
        """Write the configuration. It never holds a secret."""
        user = "user = root\n" if os.geteuid() == 0 else ""
        sections = [_CONFIG.format(folder=_escaped(str(self._folder.path)), user=user)]
        sections += [self._section(part) for part in parts]
        own_file(self._folder.supervisor_config, "".join(sections))

    def _section(self, part: Part) -> str:
        program = part.program
        return _PROGRAM.format(
            name=part.name,
            command=_escaped(shlex.join(program.command)),
            directory=_escaped(str(program.directory)),
            priority=program.priority,
            user=f"user = {program.user}\n" if program.user else "",
            environment=_environment(program.environment),
            stop_signal=program.stop_signal,
            stop_wait_s=program.stop_wait_s,
            kill_group=str(program.kill_group).lower(),
            log=_escaped(str(self._folder.log_file(part.name))),
        )

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        try:
            self._call("getState")
        except StackError:
            return False
        return True

    def launch(self, environment: Mapping[str, str], *, with_parent: bool) -> None:
        """Start supervisord, apart from this terminal; `with_parent` makes it end when the caller's process does.

        Raises StackError with what it wrote if it does not answer within 15 s.
        """
        command = (sys.executable, "-m", "stack.supervisord", "-c", str(self._folder.supervisor_config))
        with self._folder.log_file("supervisord-start").open("w") as log:
            process = self._process = subprocess.Popen(
                binaries.tied_to_parent(command) if with_parent else command,
                cwd=self._folder.path,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.is_running():
            if process.poll() is not None or time.monotonic() > deadline:
                text = self._folder.log_file("supervisord-start").read_text().strip()
                raise StackError(f"supervisord did not start:\n{text}")
            time.sleep(_POLL_S)

    def reload(self) -> None:
        """Read the configuration again, for parts that were added or have changed. They are stopped, not started."""
        added, changed, removed = self._call("reloadConfig")[0]
        for name in (*changed, *removed):
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)

    def start(self, name: str) -> None:
        """Start a part; nothing if it runs."""
        self._call("startProcess", name, False, allowed_fault=_ALREADY_STARTED)

    def stop(self, name: str) -> None:
        """Stop a part and wait for its end; nothing if it does not run."""
        self._call("stopProcess", name, True, allowed_fault=_NOT_RUNNING)

    def info(self, name: str) -> ProcessInfo:
        """The state of one part."""
        return _info(self._call("getProcessInfo", name))

    def all_info(self) -> list[ProcessInfo]:
        """The states of all parts, first started first."""
        return [_info(item) for item in self._call("getAllProcessInfo")]

    def shut_down(self, timeout_s: float = 120, *, kill: Iterable[int] = ()) -> None:
        """Stop everything in reverse order, then supervisord itself. Raises StackError if it is not gone in time.

        The processes `kill` are not waited for but killed; supervisord starts nothing again by then.
        """
        pid = int(self._call("getPID"))
        self._call("shutdown")
        for each in kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while self._is_alive(pid):
            if time.monotonic() > deadline:
                raise StackError(f"supervisord (process {pid}) is still running after {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def _is_alive(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None
        return Path(f"/proc/{pid}").exists()

    def _call(self, method: str, *arguments: Any, allowed_fault: int = 0) -> Any:
        path = self._folder.supervisor_socket
        transport = supervisor_xmlrpc.SupervisorTransport(None, None, serverurl=f"unix://{path}")
        try:
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == allowed_fault:
                return None
            raise StackError(f"supervisord refused {method}{arguments}: {fault.faultString}") from fault
        except (OSError, HTTPException, xmlrpc.client.ProtocolError) as error:
            raise StackError("the stack is not up: run make up") from error


def _info(item: Mapping[str, Any]) -> ProcessInfo:
    up = item["state"] in _UP
    return ProcessInfo(
        name=item["name"],
        up=up,
        pid=item["pid"],
        uptime_s=item["now"] - item["start"] if up else 0,
        state=item["statename"],
    )


def _environment(values: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def _escaped(text: str) -> str:
    # supervisord expands %(name)s.
    return text.replace("%", "%%")
