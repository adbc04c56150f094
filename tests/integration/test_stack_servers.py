"""The private servers: they answer, they keep what they promised to keep, and they come back."""

import stat

import psycopg
import pytest
import redis

from stack.errors import StackError
from stack.ports import refuse_taken
from tests.support.servers import Servers


def test_each_service_database_is_closed_to_other_roles(servers: Servers) -> None:
    mine, other = servers.new_database("mine"), servers.new_database("other")
    with psycopg.connect(servers.admin_url_of(mine), autocommit=True) as admin:
        admin.execute(f"REVOKE CONNECT ON DATABASE {mine.rpartition('/')[2]} FROM PUBLIC")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(other.rpartition("/")[0] + "/" + mine.rpartition("/")[2])


def test_postgres_is_durable_as_configured(servers: Servers) -> None:
    with psycopg.connect(servers.postgres_admin_url) as conn:
        rows = [conn.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
    assert rows == [("on",), ("on",)]


def test_redis_wants_the_password_and_appends_every_second(servers: Servers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.config_get("append*")["appendfsync"] == "everysec"
    address = servers.redis_url.rpartition("@")[2]
    with redis.Redis.from_url(f"redis://{address}") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


@pytest.mark.parametrize("part", ["redis", "postgres", "rabbitmq"])
def test_a_killed_server_is_started_again(servers: Servers, part: str) -> None:
    _ = servers.redis_url, servers.postgres_admin_url, servers.amqp_url
    servers.kill(part)
    servers.wait_ready(part)


def test_what_a_part_cannot_get_is_named_with_the_setting_that_moves_it(servers: Servers) -> None:
    port = int(servers.redis_url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(StackError, match=f"port {port}, wanted by redis.*REDIS_PORT"):
        refuse_taken({"redis": port})


def test_secrets_are_readable_by_their_owner_only(servers: Servers) -> None:
    _ = servers.redis_url
    folder = servers.redis_dir.parents[1]
    for name in ("secrets.env", "environment.json", "supervisord.conf", "supervisord.sock"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    secret = (folder / "secrets.env").read_text().partition("=")[2].partition("\n")[0]
    assert secret not in (folder / "supervisord.conf").read_text()
