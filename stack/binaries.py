"""Where the servers' programs are on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from stack.errors import StackError

_POSTGRES_VERSIONS = Path("/usr/lib/postgresql")
# Debian's scripts in /usr/sbin change users by themselves and log to the system's folders; these do not.
_RABBITMQ_SCRIPTS = Path("/usr/lib/rabbitmq/bin")


def redis_server() -> Path:
    """The path of redis-server. Raises StackError if it is not installed."""
    return _found("redis-server", [])


def postgres(name: str, data: Path) -> Path:
    """The path of one of PostgreSQL's programs, of the version that made `data` if that exists already.

    A data folder can only be opened by the major version that made it. Raises StackError if it is not installed.
    """
    version_file = data / "PG_VERSION"
    if version_file.exists():
        versions = [_POSTGRES_VERSIONS / version_file.read_text().strip()]
    else:
        numbered = [path for path in _POSTGRES_VERSIONS.glob("*") if path.name.isdecimal()]
        versions = sorted(numbered, key=lambda path: int(path.name), reverse=True)
    return _found(name, [version / "bin" / name for version in versions])


def rabbitmq_server() -> Path:
    """The path of the script that runs RabbitMQ as the current user. Raises StackError if it is not installed."""
    return _found("rabbitmq-server", [_RABBITMQ_SCRIPTS / "rabbitmq-server"])


def rabbitmqctl() -> Path:
    """The path of the script that commands a running RabbitMQ. Raises StackError if it is not installed."""
    return _found("rabbitmqctl", [_RABBITMQ_SCRIPTS / "rabbitmqctl"])


def epmd() -> Path:
    """The path of Erlang's port mapper. Raises StackError if it is not installed."""
    return _found("epmd", [])


def tied_to_parent(command: tuple[str, ...], stop_signal: str = "TERM") -> tuple[str, ...]:
    """The command made such that it gets `stop_signal` when the process that started it dies.

    So nothing outlives a supervisord that was killed, and supervisord does not outlive a killed test run.
    """
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", stop_signal, *command) if setpriv else command


def _found(name: str, candidates: list[Path]) -> Path:
    for candidate in candidates:
        if candidate.exists():
            return candidate
    on_path = shutil.which(name)
    if on_path is None:
        raise StackError(f"{name} was not found: run `make install`")
    return Path(on_path)
