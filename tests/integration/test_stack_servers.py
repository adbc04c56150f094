"""The private servers and the services on them: they answer, keep what they promised to keep, and come back."""

import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from stack.errors import StackError
from stack.folder import StackFolder
from stack.ports import PortLease, Ports, refuse_taken
from stack.private import private_stack
from stack.replicas import REPLICAS_MAX, Replicas
from stack.stack import Stack
from tests.support.servers import Servers

#: A service serves again within this after it was killed, seconds.
BACK_S_MAX = 3.0


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


@pytest.mark.parametrize("part", ["redis", "postgres", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def test_a_killed_server_is_started_again(servers: Servers, part: str) -> None:
    _ = servers.redis_url, servers.postgres_admin_url, servers.amqp_url
    servers.kill(part)
    servers.wait_ready(part)


def test_what_is_killed_again_and_again_is_not_kept_waiting_longer_each_time(servers: Servers) -> None:
    _ = servers.redis_url
    assert max(servers.kill("redis") for _ in range(4)) < BACK_S_MAX


def test_postgres_does_not_wait_for_a_statement_of_the_server_that_was_killed(servers: Servers) -> None:
    with psycopg.connect(servers.postgres_admin_url, autocommit=True) as watching:
        counting = threading.Thread(target=_count_for_long, args=(servers.postgres_admin_url,))
        counting.start()
        query = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%generate_series%' AND pid <> pg_backend_pid()"
        while watching.execute(query).rowcount == 0:
            time.sleep(0.02)
    log = servers.redis_dir.parents[1] / "log" / "postgres.log"
    written = log.stat().st_size
    servers.kill("postgres")
    counting.join()
    with log.open() as file:
        file.seek(written)
        assert "is still in use" not in file.read()


def _count_for_long(url: str) -> None:
    options = "-c statement_timeout=20s"
    with psycopg.connect(url, autocommit=True, options=options) as conn, pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT count(*) FROM generate_series(1, 1000000000)")


@pytest.mark.slow
def test_the_message_broker_comes_back_although_its_port_mapper_is_killed_with_it(servers: Servers) -> None:
    _ = servers.amqp_url
    stack = servers.stack
    pids = {name: stack.pid(name) for name in ("epmd", "rabbitmq")}
    for name in pids:
        stack.signal(name, signal.SIGKILL)
    for name, pid in pids.items():
        stack.wait_restarted(name, pid, 60)


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


def test_replicas_have_ports_of_their_own_which_never_meet() -> None:
    ports = Ports.from_environment({})
    listeners = ports.listeners(Replicas.of_each(REPLICAS_MAX))
    assert {name: ports.port(name) for name in ("inventory", "inventory-2", "settlement-2", "gateway-4")} == {
        "inventory": 7051,
        "inventory-2": 7151,
        "settlement-2": 7154,
        "gateway-4": 7380,
    }
    assert len(set(listeners.values())) == len(listeners)


def test_a_target_lists_every_replica() -> None:
    ports = Ports.from_environment({})
    assert ports.target("balance", Replicas()) == "127.0.0.1:7052"
    assert ports.target("balance", Replicas(balance=2)) == "ipv4:127.0.0.1:7052,127.0.0.1:7152"


@pytest.mark.parametrize(("name", "text"), [("GATEWAY_REPLICAS", "0"), ("SETTLEMENT_WORKERS", "5"), ("X", "")])
def test_the_number_of_replicas_is_checked_by_name(name: str, text: str) -> None:
    if text:
        with pytest.raises(StackError, match=f"{name} is '{text}'"):
            Replicas.from_environment({name: text})
    else:
        assert Replicas.from_environment({"BALANCE_REPLICAS": "3"}) == Replicas(balance=3)


def test_a_replica_whose_port_is_taken_is_named_with_the_setting_that_moves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port}, wanted by inventory-2.*INVENTORY_PORT"):
            refuse_taken({"inventory-2": port})
        refuse_taken({"inventory-2": port}, running={"inventory-2"})
    with pytest.raises(StackError, match=r"gateway-2 wants port 65600.*GATEWAY_PORT"):
        refuse_taken({"gateway-2": 65600})


def test_two_leases_share_no_port() -> None:
    leases = [PortLease() for _ in range(20)]
    try:
        ports = [port for lease in leases for port in lease.ports.listeners(Replicas.of_each(REPLICAS_MAX)).values()]
        assert len(set(ports)) == len(ports)
    finally:
        for lease in leases:
            lease.close()


def test_settings_that_contradict_the_certificates_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    lease = PortLease()
    stack = Stack(StackFolder(tmp_path / "stack"), lease.ports, settings={"MESH_TLS_TRUST_DOMAIN": "acme"})
    try:
        with pytest.raises(StackError, match="MESH_TLS_TRUST_DOMAIN is 'acme'"):
            stack.up()
        assert not stack.folder.path.exists()
        with pytest.raises(StackError, match="MESH_TLS_TRUST_DOMAIN is 'acme'"):
            stack.renew_certificates()
        assert not stack.folder.certificates.exists()
    finally:
        stack.discard()
        lease.close()


@pytest.fixture(scope="module")
def replicated() -> Iterator[Stack]:
    """Two of each service. They serve although nothing but PostgreSQL runs."""
    stack, lease = private_stack(
        replicas=Replicas.of_each(2), extra_environment={"balance": {"FROM_A_TEST": "yes", "BALANCE_GRACE_S": "1"}}
    )
    try:
        stack.start("postgres")
        stack.prepare_databases()
        stack.start_services()
        yield stack
    finally:
        stack.discard()
        lease.close()


def test_each_replica_listens_for_itself_and_callers_know_them_all(replicated: Stack) -> None:
    told = replicated.environment
    folder = replicated.folder.certificates
    for name in ("inventory", "inventory-2", "gateway-2"):
        own = _environment(replicated, name)
        # The certificate of its own kind, and no other's.
        assert own["MESH_TLS_KEY"] == str(folder / name.partition("-")[0] / "key.pem")
        listen = f"{name.partition('-')[0].upper()}_LISTEN"
        assert _environment(replicated, name)[listen] == f"127.0.0.1:{replicated.port(name)}"
    target = f"ipv4:127.0.0.1:{replicated.port('balance')},127.0.0.1:{replicated.port('balance-2')}"
    assert told["BALANCE_TARGET"] == told["GATEWAY_BALANCE_TARGET"] == target
    assert _environment(replicated, "settlement-2")["PURCHASE_BALANCE_TARGET"] == target
    urls = [f"http://127.0.0.1:{replicated.port(name)}" for name in ("gateway", "gateway-2")]
    assert (told["GATEWAY_URL"], told["GATEWAY_URLS"].split(",")) == (urls[0], urls)


def test_extra_environment_reaches_the_processes_of_its_kind_and_goes_over_settings(replicated: Stack) -> None:
    for name in ("balance", "balance-2"):
        own = _environment(replicated, name)
        assert (own["FROM_A_TEST"], own["BALANCE_GRACE_S"]) == ("yes", "1")
    assert "FROM_A_TEST" not in _environment(replicated, "inventory")
    with pytest.raises(StackError, match="no kind of service 'balanced'"):
        Stack(replicated.folder, Ports.from_environment({}), extra_environment={"balanced": {}})


@pytest.mark.parametrize("name", ["inventory", "balance-2", "purchase", "settlement-2", "gateway"])
def test_a_killed_service_serves_again_within_three_seconds_each_time(replicated: Stack, name: str) -> None:
    for _ in range(2):
        assert replicated.kill(name) < BACK_S_MAX


def test_a_signal_reaches_the_process_and_only_one_that_runs(replicated: Stack) -> None:
    replicated.signal("gateway-2", signal.SIGSTOP)
    assert replicated.check("gateway-2")
    replicated.signal("gateway-2", signal.SIGCONT)
    replicated.wait_ready("gateway-2")
    replicated.stop("gateway-2")
    assert replicated.pid("gateway-2") == 0
    with pytest.raises(StackError, match="gateway-2 is not running"):
        replicated.signal("gateway-2", signal.SIGKILL)
    replicated.start("gateway-2")


def test_waiting_for_a_restart_that_does_not_come_ends_with_what_was_seen(replicated: Stack) -> None:
    pid = replicated.pid("balance")
    with pytest.raises(StackError, match=f"balance was not back within 0 s .process {pid} still answers"):
        replicated.wait_restarted("balance", pid, 0.1)


def test_fewer_replicas_end_the_last_and_restart_only_those_who_call_them(replicated: Stack) -> None:
    before = {name: replicated.pid(name) for name in replicated.service_names}
    ports = Ports.from_environment(replicated.environment)
    fewer = Stack(replicated.folder, ports, replicas=Replicas(inventory=2, purchase=2, settlement=2, gateway=2))
    fewer.open()
    fewer.start_services()
    running = {info.name: info.pid for info in fewer.all_info() if info.pid}
    assert "balance-2" not in running
    assert running["inventory-2"] == before["inventory-2"]
    assert running["settlement"] != before["settlement"]


def _environment(stack: Stack, name: str) -> dict[str, str]:
    text = Path(f"/proc/{stack.pid(name)}/environ").read_text()
    return dict(line.split("=", 1) for line in text.split("\0") if line)
