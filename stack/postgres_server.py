"""The private PostgreSQL: durable commits, passwords (SCRAM), loopback only."""

from __future__ import annotations

import os
import shutil
import subprocess

import psycopg

from stack import binaries
from stack.errors import NotReadyError, StackError
from stack.folder import StackFolder, own_dir, own_file, server_user
from stack.parts import Part, Program
from stack.ports import LOOPBACK, Ports
from stack.secret_store import Secrets

_CONFIG = """\
# Written by `make up`; changes are lost.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
hba_file = '{hba}'
password_encryption = 'scram-sha-256'
# Four replicas of each service hold 140.
max_connections = 250

# Acknowledged means durable: an answered purchase has been fsynced.
fsync = on
synchronous_commit = on
full_page_writes = on

# A sale is a burst of small writes: let the log grow rather than checkpoint in the middle of it.
shared_buffers = 256MB
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = 4GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9

jit = off
random_page_cost = 1.1
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_line_prefix = '%m [%p] %d '
log_lock_waits = on
log_min_duration_statement = 1000
# A parameter can be personal; the statement's text is enough to find it.
log_parameter_max_length = 0
# A transaction left open by a process that hangs must not hold its locks forever.
idle_in_transaction_session_timeout = 60s
"""

# A server that was killed leaves its backends behind until each next looks up, after its statement; until then no new
# server starts on the data. So they are ended first, unless the server that they belong to still lives.
_START = """\
# Written by `make up`; changes are lost. start.sh DATA_FOLDER COMMAND...
data=$1; shift
read -r server 2>/dev/null <"$data/postmaster.pid"
left=yes
while [ "$left" ] && ! [ "/proc/$server/cwd" -ef "$data" ]; do
    left=
    for process in /proc/[0-9]*; do
        if [ "$process/cwd" -ef "$data" ]; then kill -KILL "${process#/proc/}" 2>/dev/null; left=yes; fi
    done
    if [ "$left" ]; then sleep 0.02; fi
done
exec "$@"
"""

_HBA = """\
# Written by `make up`; changes are lost.
host all all 127.0.0.1/32 scram-sha-256
"""


def part(folder: StackFolder, ports: Ports, secrets: Secrets) -> Part:
    """Describe the PostgreSQL server."""
    data = folder.postgres / "data"
    command = (
        "/bin/sh",
        str(folder.postgres / "start.sh"),
        str(data),
        str(binaries.postgres("postgres", data)),
        "-D",
        str(data),
        "-c",
        f"config_file={folder.postgres / 'postgresql.conf'}",
    )
    program = Program(
        command=binaries.tied_to_parent(command, "INT"),
        directory=folder.postgres,
        priority=10,
        user=server_user("postgres"),
        # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back, nothing is lost.
        stop_signal="INT",
        stop_wait_s=60,
    )

    def check_ready() -> None:
        try:
            with psycopg.connect(admin_url(ports, secrets), connect_timeout=3) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise NotReadyError(f"SELECT 1: {error}") from error

    return Part("postgres", ports.postgres, program, check_ready, ready_within_s=90)


def prepare(folder: StackFolder, secrets: Secrets, ports: Ports) -> None:
    """Make the data folder (once) and write the configuration. Raises StackError if initdb fails."""
    user = server_user("postgres")
    own_dir(folder.postgres, user)
    own_file(folder.postgres / "pg_hba.conf", _HBA, user)
    own_file(folder.postgres / "start.sh", _START, user)
    text = _CONFIG.format(host=LOOPBACK, port=ports.postgres, hba=folder.postgres / "pg_hba.conf")
    own_file(folder.postgres / "postgresql.conf", text, user)
    if not (folder.postgres / "data").exists():
        _initdb(folder, secrets, user)


def admin_url(ports: Ports, secrets: Secrets) -> str:
    """The superuser's connection, for tests and repairs; no service gets it."""
    return f"postgresql://postgres:{secrets.postgres_password}@{ports.address('postgres')}/postgres"


def _initdb(folder: StackFolder, secrets: Secrets, user: str | None) -> None:
    # Made beside its place and moved there when done: an interrupted initdb is simply repeated.
    draft, password_file = folder.postgres / "data.new", folder.postgres / "initdb-password"
    shutil.rmtree(draft, ignore_errors=True)
    own_file(password_file, secrets.postgres_password + "\n", user)
    initdb = binaries.postgres("initdb", draft)
    command = [str(initdb), "--pgdata", str(draft), "--username=postgres", f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"]
    try:
        done = subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd=folder.postgres,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise StackError(f"initdb failed:\n{(done.stdout + done.stderr).strip()}")
    draft.rename(folder.postgres / "data")
