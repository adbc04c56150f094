"""The stack folder: where it is, what lies where in it, and to whom it belongs."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError

CHECKOUT = Path(__file__).resolve().parent.parent
SERVER_USERS = ("postgres", "rabbitmq", "redis")
# A Unix socket's path has at most 107 characters (unix(7)); supervisord appends ".<pid>" while binding.
_FOLDER_LENGTH_MAX = 107 - len("/supervisord.sock.4194304")


@dataclass(frozen=True)
class StackFolder:
    """Everything a stack keeps on disk. Removing the folder removes the stack."""

    path: Path

    @property
    def marker(self) -> Path:
        """Says that this folder is a stack's, so that `clean` never removes anything else."""
        return self.path / ".flashsale-stack"

    @property
    def secrets_file(self) -> Path:
        """Passwords and the token secret, made once."""
        return self.path / "secrets.env"

    @property
    def environment_file(self) -> Path:
        """The whole environment of the running stack, as JSON."""
        return self.path / "environment.json"

    @property
    def complete_file(self) -> Path:
        """Present while the stack is up as a whole: an `up` that was cut short leaves none."""
        return self.path / "up.complete"

    @property
    def lock_file(self) -> Path:
        """Held while `up`, `down` or `clean` is at work."""
        return self.path / ".lock"

    @property
    def supervisor_config(self) -> Path:
        """supervisord's own configuration."""
        return self.path / "supervisord.conf"

    @property
    def supervisor_socket(self) -> Path:
        """supervisord's control socket."""
        return self.path / "supervisord.sock"

    @property
    def supervisor_pid_file(self) -> Path:
        """supervisord's process id."""
        return self.path / "supervisord.pid"

    @property
    def certificates(self) -> Path:
        """The local authority, and the certificates and keys of every kind of peer."""
        return self.path / "certificates"

    @property
    def redis(self) -> Path:
        """Redis: configuration and data."""
        return self.path / "redis"

    @property
    def postgres(self) -> Path:
        """PostgreSQL: configuration and data."""
        return self.path / "postgres"

    @property
    def rabbitmq(self) -> Path:
        """RabbitMQ: configuration, data, home."""
        return self.path / "rabbitmq"

    def log_file(self, part: str) -> Path:
        """Where a part's output goes."""
        return self.path / "log" / f"{part}.log"

    def service_environment_file(self, part: str) -> Path:
        """The environment one service process is started with, as JSON."""
        return self.path / "env" / f"{part}.json"

    @property
    def tag(self) -> str:
        """A short name for this folder, different from every other folder's on the machine."""
        return short_hash(self.path)

    def create(self) -> None:
        """Make the folder and its subfolders. Raises StackError if it is somebody else's folder."""
        if self.path.exists() and not self.marker.exists() and any(self.path.iterdir()):
            raise StackError(f"{self.path} is not empty and is no stack folder: set STACK_DIR to another folder")
        # The servers' users must get through to their own folders, but need not list anything.
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self.marker.touch()
        (self.path / "log").mkdir(exist_ok=True, mode=0o700)
        (self.path / "env").mkdir(exist_ok=True, mode=0o700)

    def remove(self) -> None:
        """Remove the folder with everything in it. Raises StackError if it is no stack folder."""
        if not self.path.exists():
            return
        if not self.marker.exists():
            raise StackError(f"{self.path} is no stack folder, so it is left alone")
        shutil.rmtree(self.path)


def locate(environ: Mapping[str, str], checkout: Path = CHECKOUT) -> tuple[StackFolder, str]:
    """The stack folder of a checkout, and a line that says why it is elsewhere than usual (or "").

    STACK_DIR decides; without it the folder is `.run` in the checkout, unless the servers' users cannot get
    there or its path is too long for a socket: then it is a folder of its own outside the checkout.
    """
    wanted = environ.get("STACK_DIR", "")
    folder = (Path(wanted) if wanted else checkout / ".run").absolute()
    obstacle = _obstacle(folder)
    if not obstacle:
        return StackFolder(folder), ""
    if wanted:
        raise StackError(f"STACK_DIR={folder} cannot be used: {obstacle}")
    state = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local" / "state"
    moved = state / f"flashsale-{short_hash(checkout)}"
    return StackFolder(moved), f"the stack folder is {moved}, because {obstacle}"


def server_user(name: str) -> str | None:
    """The system user a server must run as, or None for whoever runs this.

    Only root may change users, and PostgreSQL refuses to run as root. Raises StackError if root lacks the user.
    """
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise StackError(f"the system user {name} is missing: is the server's package installed?") from None
    return name


def own_dir(path: Path, user: str | None) -> None:
    """Make a folder that only `user` (or whoever runs this) can read."""
    path.mkdir(exist_ok=True, mode=0o700)
    if user is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def own_file(path: Path, text: str, user: str | None = None) -> None:
    """Write a file that only `user` (or whoever runs this) can read, in one step."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    if user is not None:
        shutil.chown(draft, user, pwd.getpwnam(user).pw_gid)
    draft.replace(path)


def short_hash(path: Path) -> str:
    """Eight characters that stand for a path."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]


def _obstacle(folder: Path) -> str:
    """Why the folder cannot hold a stack, or ""."""
    if len(str(folder)) > _FOLDER_LENGTH_MAX:
        return f"the path of {folder} is too long for a socket"
    if os.geteuid() != 0:
        return ""
    for user in SERVER_USERS:
        for parent in folder.parents:
            if parent.exists() and not _may_traverse(parent, user):
                return f"the user {user} cannot get through {parent}"
    return ""


def _may_traverse(folder: Path, user: str) -> bool:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return True  # Not installed yet, or not needed here.
    groups = {entry.pw_gid} | {group.gr_gid for group in grp.getgrall() if user in group.gr_mem}
    status = folder.stat()
    if status.st_uid == entry.pw_uid:
        return bool(status.st_mode & 0o100)
    if status.st_gid in groups:
        return bool(status.st_mode & 0o010)
    return bool(status.st_mode & 0o001)
