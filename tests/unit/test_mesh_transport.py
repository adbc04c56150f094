"""Mutual TLS between a real server and real channels: who gets in, who may do what, and certificates that change."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh import callers
from mesh.call_metrics import ChannelMetrics
from mesh.callers import allow_list
from mesh.channels import open_channel
from mesh.metrics import Metrics
from mesh.server import GrpcServer
from mesh.settings import SettingsError
from mesh.transport import Transport
from stack.certificates import new_authority
from tests.support.certificates import Peers

SERVICE = "flashsale.inventory.v1.InventoryService"
ALLOWED = allow_list(SERVICE, {"GetSale": "purchase client", "WatchStock": "purchase", "OpenSale": "operator"})


class Sales(pb_grpc.InventoryServiceServicer):
    """Answers; a stream goes on for ever, a message for each ``more``."""

    def __init__(self) -> None:
        self.opened = 0
        self.begun = asyncio.Event()
        self.leave = asyncio.Event()
        self.more: asyncio.Queue[None] = asyncio.Queue()

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        if request.sale_id == "slow":
            self.begun.set()
            await self.leave.wait()
        return pb.GetSaleResponse(sale=pb.Sale(sale_id=request.sale_id))

    async def OpenSale(self, request: pb.OpenSaleRequest, context: Any) -> pb.OpenSaleResponse:
        self.opened += 1
        return pb.OpenSaleResponse()

    async def CloseSale(self, request: pb.CloseSaleRequest, context: Any) -> pb.CloseSaleResponse:
        raise AssertionError("nobody may call this")

    async def WatchStock(self, request: pb.WatchStockRequest, context: Any) -> AsyncIterator[pb.WatchStockResponse]:
        while True:
            yield pb.WatchStockResponse()
            await self.more.get()


class Serving:
    """A server at work, and its callers."""

    def __init__(self, peers: Peers, sales: Sales, server: GrpcServer, metrics: Metrics) -> None:
        self.peers, self.sales, self.metrics = peers, sales, metrics
        layers = server._interceptor._layers
        self.check = next(layer for layer in layers if isinstance(layer, callers.CallersLayer))
        self.target = f"127.0.0.1:{server.port}"
        self.port = server.port

    @asynccontextmanager
    async def caller(self, transport: Transport, service: str = "inventory") -> AsyncIterator[Any]:
        """A stub that calls through a channel of this transport."""
        calls = ChannelMetrics(Metrics())
        async with open_channel(self.target, calls, transport=transport, service=service) as channel:
            yield pb_grpc.InventoryServiceStub(channel)

    async def shown(self) -> x509.Certificate:
        """The certificate that the server shows to a new connection."""
        files = self.peers.files("operator")
        self.peers.certify("operator")
        context = ssl.create_default_context(cafile=str(files.authorities))
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname="inventory.flashsale"
        )
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    peers, sales, metrics = Peers(tmp_path / "peers"), Sales(), Metrics()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(sales, server))
    transport = peers.transport("inventory")
    async with GrpcServer(
        "127.0.0.1:0", [register], metrics=metrics, transport=transport, allowed=ALLOWED, grace_s=0.2
    ) as server:
        await server.serving()
        yield Serving(peers, sales, server, metrics)


async def get(stub: Any, sale_id: str = "s", timeout: float = 10.0) -> str:
    answer: pb.GetSaleResponse = await stub.GetSale(pb.GetSaleRequest(sale_id=sale_id), timeout=timeout)
    return answer.sale.sale_id


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_a_peer_that_is_on_the_list_is_answered(serving: Serving) -> None:
    for identity in ("purchase", "client/acme"):
        async with serving.caller(serving.peers.transport(identity)) as stub:
            assert await get(stub) == "s"


async def test_a_peer_that_is_not_is_refused_before_anything_is_done(serving: Serving) -> None:
    async with serving.caller(serving.peers.transport("gateway")) as stub:
        error = await refusal(stub.OpenSale(pb.OpenSaleRequest(), timeout=10))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED
        assert error.details() == "gateway may not call OpenSale"
        stream = stub.WatchStock(pb.WatchStockRequest(), timeout=10)
        assert (await refusal(stream.read())).code() == grpc.StatusCode.PERMISSION_DENIED
    assert serving.sales.opened == 0
    text = serving.metrics.text().decode()
    assert f'flashsale_callers_refused_total{{grpc_method="{SERVICE}/OpenSale",kind="gateway"}} 1.0' in text


async def test_a_method_without_a_list_is_for_nobody(serving: Serving) -> None:
    for identity in ("operator", "inventory", "purchase"):
        async with serving.caller(serving.peers.transport(identity)) as stub:
            error = await refusal(stub.CloseSale(pb.CloseSaleRequest(), timeout=10))
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_the_name_of_a_kind_within_another_gives_no_right(serving: Serving) -> None:
    uris = ["spiffe://flashsale/client/operator"]
    async with serving.caller(Transport(serving.peers.certificates("client/operator", uris=uris))) as stub:
        error = await refusal(stub.OpenSale(pb.OpenSaleRequest(), timeout=10))
        assert error.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "uris",
    [
        ["spiffe://elsewhere/purchase"],
        ["spiffe://flashsale/purchase", "spiffe://flashsale/operator"],
        ["https://flashsale/purchase"],
    ],
    ids=["of another domain", "of two identities", "no SPIFFE ID"],
)
async def test_a_certificate_of_ours_that_names_nobody_of_ours_is_refused(serving: Serving, uris: list[str]) -> None:
    files = serving.peers.certify("purchase", uris=uris)
    credentials = grpc.ssl_channel_credentials(
        files.authorities.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", "inventory.flashsale")]
    async with grpc.aio.secure_channel(serving.target, credentials, options) as channel:
        error = await refusal(pb_grpc.InventoryServiceStub(channel).GetSale(pb.GetSaleRequest(), timeout=10))
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("who", ["plaintext", "no certificate", "another authority's", "expired"])
async def test_who_has_no_certificate_of_our_authorities_gets_no_connection(
    serving: Serving, who: str, tmp_path: Path
) -> None:
    ours = serving.peers.certify("purchase", life=timedelta(seconds=-1 if who == "expired" else 3600))
    theirs = Peers(tmp_path / "theirs").certify("purchase") if who == "another authority's" else ours
    pair = (theirs.key.read_bytes(), theirs.certificate.read_bytes()) if who != "no certificate" else (None, None)
    credentials = grpc.ssl_channel_credentials(ours.authorities.read_bytes(), *pair)
    options = [("grpc.ssl_target_name_override", "inventory.flashsale")]
    if who == "plaintext":
        channel = grpc.aio.insecure_channel(serving.target)
    else:
        channel = grpc.aio.secure_channel(serving.target, credentials, options)
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await get(pb_grpc.InventoryServiceStub(channel))
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        health: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)


async def test_a_caller_speaks_only_to_the_kind_of_service_it_means(serving: Serving) -> None:
    transport = serving.peers.transport("purchase")
    async with serving.caller(transport, "balance") as stub:
        assert (await refusal(get(stub))).code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("identity", ["gateway", "client/acme"])
async def test_who_only_calls_cannot_pass_for_a_service(tmp_path: Path, identity: str) -> None:
    peers = Peers(tmp_path)
    async with GrpcServer("127.0.0.1:0", [], transport=peers.transport(identity), grace_s=0) as server:
        transport = peers.transport("purchase")
        async with open_channel(f"127.0.0.1:{server.port}", transport=transport, service="inventory") as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_health_is_for_every_peer(serving: Serving) -> None:
    transport = serving.peers.transport("gateway")
    async with open_channel(serving.target, transport=transport, service="inventory") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_server_shows_its_new_certificate_at_the_next_handshake(serving: Serving) -> None:
    before = await serving.shown()
    assert (await serving.shown()).serial_number == before.serial_number
    serving.peers.certify("inventory")
    assert (await serving.shown()).serial_number != before.serial_number


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The certificates that calls came with, in PEM, a line after the other."""
    certificates: list[bytes] = []
    inner = callers.CallersLayer._caller

    def noted(layer: Any, method: str, context: Any) -> Any:
        certificates.append(context.auth_context()["x509_pem_cert"][0].strip())
        return inner(layer, method, context)

    monkeypatch.setattr(callers.CallersLayer, "_caller", noted)
    return certificates


def certified(serving: Serving, **rest: Any) -> bytes:
    """The certificate, in PEM, that the purchase service gets now."""
    return serving.peers.certify("purchase", **rest).certificate.read_bytes().strip()


async def test_a_caller_goes_over_to_its_new_certificate_and_loses_no_call(serving: Serving, seen: list[bytes]) -> None:
    async with serving.caller(serving.peers.transport("purchase")) as stub:
        stream = stub.WatchStock(pb.WatchStockRequest(), timeout=60)
        await stream.read()
        slow = asyncio.ensure_future(get(stub, "slow", 60))
        await serving.sales.begun.wait()
        old, new = seen[-1], certified(serving)
        async with asyncio.timeout(20):
            # Whatever is called meanwhile is answered, over the old connection or the new.
            while seen[-1] == old:
                assert await get(stub) == "s"
        assert seen[-1] == new
        # What had begun before goes on to its end.
        serving.sales.leave.set()
        assert await slow == "slow"
        serving.sales.more.put_nowait(None)
        assert isinstance(await stream.read(), pb.WatchStockResponse)
        stream.cancel()


async def test_a_channel_that_is_used_no_more_is_closed(serving: Serving) -> None:
    channel: Any = serving.peers.transport("purchase").channel(serving.target, "inventory", [])
    async with channel, asyncio.timeout(20):
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        slow = asyncio.ensure_future(get(stub, "slow"))
        await serving.sales.begun.wait()
        old = channel._now.channel
        certified(serving)
        while channel._now.channel is old:
            await get(stub)
        assert not old._channel.closed()
        serving.sales.leave.set()
        await slow
        while not old._channel.closed():
            await asyncio.sleep(0.01)


async def test_a_caller_stays_with_its_old_certificate_while_nobody_trusts_the_new_one(
    serving: Serving, seen: list[bytes]
) -> None:
    async with serving.caller(serving.peers.transport("purchase")) as stub:
        await get(stub)
        old = seen[-1]
        certified(serving, authority=new_authority(datetime.now(UTC)))
        for _ in range(50):
            assert await get(stub) == "s"
        assert seen[-1] == old
        # One more renewal, of the right authority, ends the attempt with the wrong one.
        new = certified(serving)
        async with asyncio.timeout(20):
            while seen[-1] == old:
                assert await get(stub) == "s"
        assert seen[-1] == new


async def test_a_channel_whose_certificate_runs_out_unused_is_not_refused_when_it_is_needed(
    serving: Serving, seen: list[bytes]
) -> None:
    # What is left of it is less than a connection would be trusted with.
    async with serving.caller(serving.peers.transport("purchase", life=timedelta(seconds=30))) as stub:
        await get(stub)
        new = certified(serving)
        await get(stub)
    assert seen[-1] == new


async def test_one_authority_is_replaced_by_another_without_a_failed_call(serving: Serving) -> None:
    peers, old, new = serving.peers, serving.peers.authority, new_authority(datetime.now(UTC))
    async with serving.caller(peers.transport("purchase")) as stub:
        for step in (
            lambda: peers.trust(old, new),
            lambda: peers.certify("inventory", authority=new),
            lambda: peers.certify("purchase", authority=new),
        ):
            step()
            for _ in range(20):
                assert await get(stub) == "s"
        # Only when the caller has gone over may the old authority go.
        transport = peers.transport("purchase", authority=new)
        peers.trust(new)
        async with serving.caller(transport) as fresh:
            assert await get(fresh) == "s"
        peers.certify("purchase", authority=old)
        async with serving.caller(Transport(peers.certificates("purchase", authority=old))) as stale:
            assert (await refusal(get(stale))).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_connection_does_not_outlive_its_certificate(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving.caller(serving.peers.transport("purchase")) as stub:
        await get(stub)
        stream = stub.WatchStock(pb.WatchStockRequest(), timeout=60)
        await stream.read()
        tomorrow = datetime.now(UTC).timestamp() + 86_400
        monkeypatch.setattr(serving.check, "_now", lambda: tomorrow)
        error = await refusal(get(stub))
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert error.details() == "the peer's certificate has expired"
        serving.sales.more.put_nowait(None)
        assert (await refusal(stream.read())).code() == grpc.StatusCode.UNAUTHENTICATED


async def test_without_certificates_only_loopback_is_listened_on_and_called(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"listen: 0\.0\.0\.0:0 is not on loopback"):
        async with GrpcServer("0.0.0.0:0", []):
            pass
    with pytest.raises(SettingsError, match=r"target: inventory\.example\.org:7051 is not on loopback"):
        open_channel("inventory.example.org:7051")
    async with GrpcServer("0.0.0.0:0", [], transport=Transport(allow_plaintext=True), grace_s=0) as server:
        assert server.port
    async with GrpcServer("0.0.0.0:0", [], transport=Peers(tmp_path).transport("inventory"), grace_s=0) as server:
        assert server.port


async def test_metrics_are_shown_on_loopback_only_unless_told(serving: Serving) -> None:
    with pytest.raises(SettingsError, match=r"metrics: 0\.0\.0\.0:0 is not on loopback"):
        Metrics().show("0.0.0.0:0")
    assert "flashsale_certificate_expiry_timestamp_seconds" in serving.metrics.text().decode()
