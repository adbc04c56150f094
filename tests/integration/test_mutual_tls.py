"""Mutual TLS between the processes of the real stack: who may do what, and certificates renewed under traffic."""

import asyncio
import itertools
import ssl
import stat
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stack.certificates import IDENTITIES, SERVING, files_of
from stack.folder import CHECKOUT
from stack.peers import peer_files
from stack.services import base_environment
from tests.contract.test_gateway_real import Client, new_sale
from tests.support.servers import MeshStack, Servers
from tests.support.waiting import eventually

PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


async def refusal(call: Any) -> grpc.StatusCode:
    """How it is refused; it must be."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


@pytest.mark.parametrize("identity", [each for each in IDENTITIES if each != "settlement"])
async def test_nobody_but_the_worker_moves_money_or_confirms(mesh_stack: MeshStack, identity: str) -> None:
    hold = str(uuid.uuid4())
    money = Money(amount_minor=1, currency_code="EUR")
    async with mesh_stack.as_peer(identity, "balance") as channel:
        stub = BalanceServiceStub(channel)
        item = balance.PlaceHoldItem(hold_id=hold, user_id="u", amount=money, beneficiary="b")
        for call in (
            stub.BatchPlaceHolds(balance.BatchPlaceHoldsRequest(holds=[item]), timeout=10),
            stub.BatchCaptureHolds(balance.BatchCaptureHoldsRequest(hold_ids=[hold]), timeout=10),
            stub.BatchReleaseHolds(balance.BatchReleaseHoldsRequest(hold_ids=[hold]), timeout=10),
            stub.BatchReverseCaptures(balance.BatchReverseCapturesRequest(hold_ids=[hold]), timeout=10),
        ):
            assert await refusal(call) == PERMISSION_DENIED
    async with mesh_stack.as_peer(identity, "inventory") as channel:
        confirm = inventory.BatchConfirmReservationsRequest(reservation_ids=[hold])
        confirming = InventoryServiceStub(channel).BatchConfirmReservations(confirm, timeout=10)
        assert await refusal(confirming) == PERMISSION_DENIED


async def test_the_worker_may(mesh_stack: MeshStack) -> None:
    hold = str(uuid.uuid4())
    async with mesh_stack.as_peer("settlement", "balance") as channel:
        release = balance.BatchReleaseHoldsRequest(hold_ids=[hold])
        answer = await BalanceServiceStub(channel).BatchReleaseHolds(release, timeout=10)
    assert [outcome.reason for outcome in answer.outcomes] == [ErrorReason.ERROR_REASON_HOLD_NOT_FOUND]


async def test_other_teams_buy_but_do_not_see_money(mesh_stack: MeshStack) -> None:
    async with mesh_stack.as_peer("client/local", "purchase") as channel:
        get = purchase.GetPurchaseRequest(purchase_id=str(uuid.uuid4()))
        call = PurchaseServiceStub(channel).GetPurchase(get, timeout=10)
        assert await refusal(call) == grpc.StatusCode.NOT_FOUND
    async with mesh_stack.as_peer("client/local", "balance") as channel:
        request = balance.GetBalanceRequest(user_id="u", currency_code="EUR")
        assert await refusal(BalanceServiceStub(channel).GetBalance(request, timeout=10)) == PERMISSION_DENIED


@pytest.mark.parametrize("service", SERVING)
async def test_no_service_answers_in_the_clear_or_without_a_certificate(mesh_stack: MeshStack, service: str) -> None:
    port = mesh_stack.stack.port(service)
    authorities = files_of(mesh_stack.stack.folder.certificates, "operator").authorities.read_bytes()
    options = [("grpc.ssl_target_name_override", f"{service}.flashsale")]
    for channel in (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}"),
        grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authorities), options),
    ):
        async with channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_keys_are_readable_by_their_owner_only_and_each_process_is_told_of_its_own(mesh_stack: MeshStack) -> None:
    folder = mesh_stack.stack.folder.certificates
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for identity in IDENTITIES:
        assert stat.S_IMODE(files_of(folder, identity).key.stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "ca-key.pem").stat().st_mode) == 0o600
    for name in mesh_stack.stack.service_names:
        told = dict(
            line.split("=", 1)
            for line in Path(f"/proc/{mesh_stack.stack.pid(name)}/environ").read_text().split("\0")
            if line
        )
        assert told["MESH_TLS_CERTIFICATE"] == str(files_of(folder, name).certificate)


def test_no_log_shows_a_key(mesh_stack: MeshStack) -> None:
    folder = mesh_stack.stack.folder
    keys = [files_of(folder.certificates, each).key for each in IDENTITIES] + [folder.certificates / "ca-key.pem"]
    secrets = [line for key in keys for line in key.read_text().splitlines() if not line.startswith("-----")]
    logs = [path.read_text(errors="replace") for path in (folder.path / "log").glob("*.log")]
    assert len(logs) > len(mesh_stack.stack.service_names)
    assert not [line for line in secrets for log in logs if line in log]


async def serial_shown(stack: MeshStack, service: str) -> int:
    """Serial number of the certificate that a service shows to a new connection."""
    files = peer_files(stack.environment, "operator")
    assert files is not None
    context = ssl.create_default_context(cafile=str(files.authorities))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", stack.stack.port(service), ssl=context, server_hostname=f"{service}.flashsale"
    )
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


#: How many services a process calls while people buy, each over a channel.
CHANNELS = {"gateway": 3, "purchase": 1, "settlement": 2}


def times_gone_over(stack: MeshStack, name: str) -> int:
    """How often a process has gone over to a new certificate, channel by channel."""
    log = stack.stack.folder.log_file(name).read_text()
    return log.count("a channel has gone over to a new certificate")


async def test_renewal_under_traffic_fails_no_call_and_restarts_nobody(mesh_stack: MeshStack) -> None:
    stack = mesh_stack.stack
    pids = {name: stack.pid(name) for name in stack.service_names}
    before = {service: await serial_shown(mesh_stack, service) for service in SERVING}
    gone_over = {name: times_gone_over(mesh_stack, name) for name in CHANNELS}
    client, run = Client(mesh_stack), uuid.uuid4().hex[:8]
    sale = await new_sale(mesh_stack, [f"{run}-rich"])
    done, statuses = asyncio.Event(), Counter[int]()

    async def use() -> None:
        """Calls by which the gateway, the purchase service and the worker call whom they call."""
        for number in itertools.count():
            if done.is_set():
                return
            user = f"{run}-{number}"
            # Without an account: the purchase fails when it is settled, and the share comes back.
            for method, path, key, body in (
                ("GET", f"/v1/sales/{sale}", None, None),
                ("GET", "/v1/balance", None, None),
                ("POST", f"/v1/sales/{sale}/purchases", user, b'{"quantity":1}'),
            ):
                status, _ = await client.send(method, path, user, key, body)
                statuses[status] += 1

    using = asyncio.ensure_future(use())
    try:
        await asyncio.to_thread(stack.renew_certificates, every=True)

        async def all_new() -> bool:
            assert not using.done()
            now = {service: await serial_shown(mesh_stack, service) for service in SERVING}
            return all(now[service] != before[service] for service in SERVING)

        async def all_gone_over() -> bool:
            assert not using.done()
            return all(times_gone_over(mesh_stack, name) >= gone_over[name] + CHANNELS[name] for name in CHANNELS)

        await eventually(all_new, within_s=15)
        await eventually(all_gone_over, within_s=30)
    finally:
        done.set()
        await using
    # 404: no balance; 409: all shares are with those who have no account yet.
    assert statuses.keys() <= {200, 202, 404, 409}, statuses
    assert statuses[202] > 0
    assert {name: stack.pid(name) for name in stack.service_names} == pids
    assert await asyncio.to_thread(stack.check, "gateway") == ""


def test_a_service_does_not_start_beyond_loopback_in_the_clear(servers: Servers) -> None:
    url = servers.new_database("balance")

    def run(verb: str, **told: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "balance_svc", verb],
            cwd=CHECKOUT,
            env=base_environment() | {"BALANCE_DATABASE_URL": url} | told,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert run("migrate").returncode == 0
    ended = run("serve", BALANCE_LISTEN="0.0.0.0:0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("settings: listen: 0.0.0.0:0 is not on loopback")
    assert len(ended.stderr.splitlines()) == 1
