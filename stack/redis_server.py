"""The private Redis: append-only file every second, never evicts, password, loopback only."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack import binaries
from stack.errors import NotReadyError
from stack.folder import StackFolder, own_dir, own_file, server_user
from stack.parts import Part, Program
from stack.ports import LOOPBACK, Ports
from stack.secret_store import Secrets

_CONFIG = """\
# Written by `make up`; changes are lost.
bind {host}
port {port}
protected-mode yes
requirepass {password}
daemonize no
logfile ""
dir {data}
databases 1
tcp-keepalive 60
# Durability: at most a second is lost; the stock gate detects every restart and rebuilds itself from SQL.
appendonly yes
appendfsync everysec
save ""
# A full Redis refuses writes (fails closed). Evicting a key would forget units that are taken.
maxmemory 1gb
maxmemory-policy noeviction
"""


def part(folder: StackFolder, ports: Ports, secrets: Secrets) -> Part:
    """Describe the Redis server."""
    command = (str(binaries.redis_server()), str(folder.redis / "redis.conf"))
    program = Program(
        command=binaries.tied_to_parent(command),
        directory=folder.redis / "data",
        priority=10,
        user=server_user("redis"),
    )

    def check_ready() -> None:
        client = redis.Redis(
            host=LOOPBACK,
            port=ports.redis,
            password=secrets.redis_password,
            socket_timeout=2,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            client.ping()
        except redis.RedisError as error:
            raise NotReadyError(f"PING: {error}") from error
        finally:
            client.close()

    return Part("redis", ports.redis, program, check_ready, ready_within_s=30)


def prepare(folder: StackFolder, ports: Ports, secrets: Secrets) -> None:
    """Write the configuration and make the data folder."""
    user = server_user("redis")
    own_dir(folder.redis, user)
    own_dir(folder.redis / "data", user)
    text = _CONFIG.format(host=LOOPBACK, port=ports.redis, password=secrets.redis_password, data=folder.redis / "data")
    own_file(folder.redis / "redis.conf", text, user)
