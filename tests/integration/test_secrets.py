"""No secret in logs, process arguments, configurations or the repository; each process has its own and no other."""

import asyncio
import http.client
import json
import re
import signal
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from gateway.local_tokens import issue
from stack import database_roles, environment
from stack.secret_store import load_or_create
from stack.stack import Stack
from tests.contract.test_gateway_real import Client, new_sale
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
#: What each kind of process is given of the secrets.
OWN = {
    "inventory": {"INVENTORY_DATABASE_PASSWORD", "INVENTORY_REDIS_PASSWORD"},
    "balance": {"BALANCE_DATABASE_PASSWORD"},
    "purchase": {"PURCHASE_DATABASE_PASSWORD", "PURCHASE_AMQP_PASSWORD"},
    "settlement": {"PURCHASE_DATABASE_PASSWORD", "SETTLEMENT_AMQP_PASSWORD"},
    "gateway": {"GATEWAY_JWT_SECRET"},
}


@pytest.fixture(scope="module")
def stack() -> Iterator[MeshStack]:
    """A whole system that nobody else uses: its servers are going to be stopped."""
    with MeshStack() as made:
        yield made


def secrets_of(stack: MeshStack) -> dict[str, str]:
    lines = stack.stack.folder.secrets_file.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def found_in(text: str, secrets: dict[str, str]) -> set[str]:
    return {name for name, value in secrets.items() if value in text}


def send(stack: MeshStack, headers: dict[str, str], path: str = "/v1/balance") -> int:
    address = urlsplit(stack.gateway_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_no_secret_is_in_the_arguments_of_any_process(stack: MeshStack) -> None:
    arguments = []
    for info in stack.stack.all_info():
        tree = [info.pid] if info.pid else []
        while tree:
            pid = tree.pop()
            arguments.append(Path(f"/proc/{pid}/cmdline").read_text())
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                tree += map(int, children.read_text().split())
    assert len(arguments) > 9
    assert found_in("\n".join(arguments), secrets_of(stack)) == set()


@pytest.mark.parametrize("kind", list(OWN))
def test_each_process_is_told_its_own_secrets_and_no_other(stack: MeshStack, kind: str) -> None:
    told = Path(f"/proc/{stack.stack.pid(kind)}/environ").read_text()
    assert found_in(told, secrets_of(stack)) == OWN[kind]


def test_the_servers_configurations_hold_hashes_and_everything_is_its_owner_s(stack: MeshStack) -> None:
    folder, secrets = stack.stack.folder.path, secrets_of(stack)
    holds = {
        path.relative_to(folder).as_posix(): found_in(path.read_text(errors="replace"), secrets)
        for path in folder.rglob("*")
        if (path.is_file() and path.suffix in (".conf", ".json", ".env", ".config", ".sh"))
        or path.name == "enabled_plugins"
    }
    holders = {name for name, found in holds.items() if found}
    assert holders == {"secrets.env", "environment.json", *(f"env/{name}.json" for name in stack.stack.service_names)}
    for name in holders:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert holds["redis/redis.conf"] == holds["rabbitmq/definitions.json"] == set()


def test_what_is_printed_is_blotted_out(stack: MeshStack) -> None:
    text = json.dumps(environment.masked(stack.stack.environment))
    assert found_in(text, secrets_of(stack)) == set()
    assert "GATEWAY_URL" in text


def test_a_password_is_changed_by_forgetting_it(stack: MeshStack) -> None:
    """As docs/security-stores.md tells: without its line in secrets.env the next start makes another."""
    changed = {"INVENTORY_REDIS_PASSWORD", "PURCHASE_AMQP_PASSWORD", "BALANCE_DATABASE_PASSWORD"}
    before = secrets_of(stack)
    kept = [f"{name}={value}\n" for name, value in before.items() if name not in changed]
    stack.stack.folder.secrets_file.write_text("".join(kept))
    old = stack.stack.environment
    again = Stack(stack.stack.folder, stack.stack._ports)
    again.up()
    after = secrets_of(stack)
    assert {name for name, value in before.items() if after[name] != value} == changed
    with redis.Redis.from_url(old["INVENTORY_REDIS_URL"]) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(old["BALANCE_DATABASE_URL"])
    with redis.Redis.from_url(again.environment["INVENTORY_REDIS_URL"]) as client:
        assert client.ping()


#: The secrets that there were while each service's only role owned its database, and all shared a user of the others.
EARLIER = {
    "REDIS_PASSWORD",
    "AMQP_PASSWORD",
    "POSTGRES_PASSWORD",
    *(f"{name.upper()}_DATABASE_PASSWORD" for name in database_roles.DATABASES),
    "GATEWAY_JWT_SECRET",
}


def made_as_before(stack: Stack) -> None:
    """Takes everything back that came with the services' own users, from servers that run."""
    admin = stack.environment["POSTGRES_ADMIN_URL"]
    for name in database_roles.DATABASES:
        with psycopg.connect(admin.rpartition("/")[0] + "/" + name, autocommit=True) as conn:
            owner = database_roles.owner_of(name)
            conn.execute(f"REASSIGN OWNED BY {owner} TO {name}".encode())
            conn.execute(f"DROP OWNED BY {owner}, {database_roles.AUDITOR}".encode())
    with psycopg.connect(admin, autocommit=True) as conn:
        for role in (*map(database_roles.owner_of, database_roles.DATABASES), database_roles.AUDITOR):
            conn.execute(f"DROP ROLE {role}".encode())
    with redis.Redis.from_url(stack.environment["REDIS_URL"]) as client:
        client.execute_command("ACL DELUSER", "inventory")
    for user in ("purchase", "settlement"):
        stack.control_broker("delete_user", user)
    lines = stack.folder.secrets_file.read_text().splitlines(keepends=True)
    stack.folder.secrets_file.write_text("".join(line for line in lines if line.partition("=")[0] in EARLIER))


@pytest.mark.slow
async def test_an_installation_of_an_earlier_version_is_brought_up_to_date_while_it_runs(stack: MeshStack) -> None:
    """It keeps its data and the secrets it had, and no service owns anything any more."""
    running = Stack(stack.stack.folder, stack.stack._ports)
    client, user = Client(stack), f"user-{uuid.uuid4().hex[:8]}"
    _, bought = await client.buy(await new_sale(stack, [user]), user)
    path = f"/v1/purchases/{bought['purchase_id']}?wait=20"
    assert (await client.send("GET", path, user))[1]["state"] == "CONFIRMED"
    await asyncio.to_thread(made_as_before, running)
    before = secrets_of(stack)
    assert set(before) == EARLIER
    again = Stack(stack.stack.folder, stack.stack._ports)
    await asyncio.to_thread(again.up)
    after = secrets_of(stack)
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    assert (await client.send("GET", path, user))[1]["state"] == "CONFIRMED"
    other = f"{user}-other"
    _, bought = await client.buy(await new_sale(stack, [other]), other)
    path = f"/v1/purchases/{bought['purchase_id']}?wait=20"
    assert (await client.send("GET", path, other))[1]["state"] == "CONFIRMED"
    for name in database_roles.DATABASES:
        with psycopg.connect(again.environment[f"{name.upper()}_DATABASE_URL"]) as conn:
            row = conn.execute("SELECT count(*) FROM pg_class WHERE relowner = current_user::regrole").fetchone()
        assert row == (0,)


async def test_no_secret_and_no_token_is_logged_also_when_everything_fails(stack: MeshStack) -> None:
    """The last of this stack: its servers are stopped, and its services start without them."""
    stores = ("INVENTORY_REDIS_URL", "PURCHASE_AMQP_URL", "SETTLEMENT_AMQP_URL", "BALANCE_DATABASE_URL")
    secrets = secrets_of(stack) | {name: stack.stack.environment[name] for name in stores}
    client, user = Client(stack), f"user-{uuid.uuid4().hex[:8]}"
    sale = await new_sale(stack, [user])
    assert (await client.buy(sale, user))[0] == 202
    token = issue(stack.jwt_secret, user)
    header, payload, signature = token.split(".")
    for bearer in (token, token + "x", f"{header}.{payload}.", f"{header}..{signature}", stack.jwt_secret, "x" * 5000):
        await asyncio.to_thread(send, stack, {"authorization": f"Bearer {bearer}"})
    for part in ("redis", "rabbitmq"):
        await asyncio.to_thread(stack.stack.stop, part)
    await client.send("GET", f"/v1/sales/{sale}/stock", user)
    await fails_anew(stack, "the message broker is away", "purchase", "settlement")
    await asyncio.to_thread(stack.stack.stop, "postgres")
    await asyncio.to_thread(send, stack, {"authorization": f"Bearer {token}"})
    await client.send("GET", f"/v1/purchases?sale_id={sale}", user)
    await fails_anew(stack, "psycopg.OperationalError", "inventory", "balance", "purchase", "settlement")
    text = "".join(path.read_text(errors="replace") for path in (stack.stack.folder.path / "log").iterdir())
    assert found_in(text, secrets | {"a token": token, "a signature": signature}) == set()
    assert not re.search(r"://[^/@\s\"']*:[^/@\s\"'*]+@", text), "a URL with a password"


async def fails_anew(stack: MeshStack, words: str, *names: str) -> None:
    """Kills services, and waits until those that are started in their place have logged these words."""
    logs = {name: stack.stack.folder.log_file(name) for name in names}
    known = {name: path.stat().st_size for name, path in logs.items()}
    for name in names:
        stack.stack.signal(name, signal.SIGKILL)

    async def logged() -> bool:
        return all(words in path.read_bytes()[known[name] :].decode(errors="replace") for name, path in logs.items())

    await eventually(logged, within_s=30)


def test_every_installation_makes_secrets_of_its_own(tmp_path: Path) -> None:
    first, again, other = (load_or_create(tmp_path / name) for name in ("one.env", "one.env", "two.env"))
    assert vars(first) == vars(again)
    values = [*vars(first).values(), *vars(other).values()]
    assert len(set(values)) == len(values)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in values)
    assert stat.S_IMODE((tmp_path / "one.env").stat().st_mode) == 0o600
    assert first.redis_password not in repr(first)
    # An installation of an earlier version keeps what it has and gets what it lacks.
    (tmp_path / "old.env").write_text(f"REDIS_PASSWORD={'a' * 64}\n")
    assert load_or_create(tmp_path / "old.env").redis_password == "a" * 64


def test_the_repository_holds_no_secret() -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    patterns = {
        "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=]{20}",
        "a token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
        "a key of a cloud": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bxox[abp]-[0-9A-Za-z-]{10,}",
        "a long secret in hexadecimal": r"(?i)(password|secret|token)\W{1,4}[0-9a-f]{32,}\b",
    }
    found = []
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if path.suffix in (".png", ".lock") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found += [f"{name}: {what}" for what, pattern in patterns.items() if re.search(pattern, text)]
    assert found == []
    assert not any(Path(name).name in ("secrets.env", "environment.json") for name in files.split("\0"))
