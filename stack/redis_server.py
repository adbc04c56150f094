"""The private Redis: append-only file every second, never evicts, a user for the service, loopback only."""

from __future__ import annotations

import hashlib

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack import binaries
from stack.errors import NotReadyError
from stack.folder import StackFolder, own_dir, own_file, server_user
from stack.parts import Part, Program
from stack.ports import LOOPBACK, Ports
from stack.secret_store import Secrets

#: The inventory service's user: its own keys and its one channel, and of the commands those that it sends and those
#: that its scripts call. No key of another, nothing that empties, configures or watches the server.
SERVICE = "inventory"
RIGHTS = (
    "resetkeys resetchannels ~inventory:* &inventory:edges -@all"
    # Sent by it.
    " +ping +evalsha +script|load +script|exists +subscribe +unsubscribe +hset +hscan +expire +zrem"
    # Called by the scripts.
    " +info +time +exists +hmget +hexists +hlen +hdel +hincrby +zadd +zrangebyscore +rpush +ltrim +lrange +llen"
    " +persist +unlink +publish"
)

_CONFIG = """\
# Written by `make up`; changes are lost.
bind {host}
port {port}
protected-mode yes
# Hashes, no passwords. Whoever gives only a password is `default`, the administrator.
user default on {administrator} ~* &* +@all
user {service} on {password} {rights}
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
        try:
            with _administrator(ports, secrets) as client:
                client.ping()
        except redis.RedisError as error:
            raise NotReadyError(f"PING: {error}") from error

    return Part("redis", ports.redis, program, check_ready, ready_within_s=30)


def prepare(folder: StackFolder, ports: Ports, secrets: Secrets) -> None:
    """Write the configuration and make the data folder."""
    user = server_user("redis")
    own_dir(folder.redis, user)
    own_dir(folder.redis / "data", user)
    text = _CONFIG.format(
        host=LOOPBACK,
        port=ports.redis,
        administrator=_hashed(secrets.redis_password),
        service=SERVICE,
        password=_hashed(secrets.inventory_redis_password),
        rights=RIGHTS,
        data=folder.redis / "data",
    )
    own_file(folder.redis / "redis.conf", text, user)


def admit_services(ports: Ports, secrets: Secrets) -> None:
    """Tell a server that runs of the service's user as its configuration has it. Repeatable."""
    rules = ("reset", "on", _hashed(secrets.inventory_redis_password), *RIGHTS.split())
    with _administrator(ports, secrets) as client:
        client.execute_command("ACL SETUSER", SERVICE, *rules)


def redis_url(user: str, ports: Ports, secrets: Secrets) -> str:
    """The connection of the service's user, or of the administrator, whose name is empty."""
    password = secrets.inventory_redis_password if user == SERVICE else secrets.redis_password
    return f"redis://{user}:{password}@{ports.address('redis')}/0"


def _administrator(ports: Ports, secrets: Secrets) -> redis.Redis:
    return redis.Redis(
        host=LOOPBACK,
        port=ports.redis,
        password=secrets.redis_password,
        socket_timeout=2,
        socket_connect_timeout=2,
        retry=Retry(NoBackoff(), 0),
    )


def _hashed(password: str) -> str:
    """As Redis takes it in place of the password, which has 256 random bits and so needs no salt."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()
