"""The client package under certificates that change, against servers that require one: with and without asyncio."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc
from flashsale_client import AsyncClient, Client, FlashsaleError, Policy, Tls, certificates, state_name

from mesh.callers import allow_list
from mesh.server import GrpcServer
from stack.certificates import new_authority
from stack.ports import PortLease
from tests.support.certificates import Peers
from tests.support.waiting import eventually

SERVICE = pb.DESCRIPTOR.services_by_name["PurchaseService"].full_name
ALLOWED = allow_list(SERVICE, {"GetPurchase": "client", "WatchPurchase": "client"})
WHO = "client/acme"


class Purchases(pb_grpc.PurchaseServiceServicer):
    """Answers each call, "slow" when it is let; a watch tells RESERVED, and CONFIRMED when it is let."""

    def __init__(self) -> None:
        #: The certificates, in PEM, that calls came with.
        self.seen: list[bytes] = []
        self.slow = 0
        self.watches = 0
        self.leave = asyncio.Event()

    async def GetPurchase(self, request: pb.GetPurchaseRequest, context: Any) -> pb.GetPurchaseResponse:
        self.seen.append(context.auth_context()["x509_pem_cert"][0].strip())
        if request.purchase_id == "slow":
            self.slow += 1
            await self.leave.wait()
        return pb.GetPurchaseResponse(purchase=pb.Purchase(purchase_id=request.purchase_id))

    async def WatchPurchase(
        self, request: pb.WatchPurchaseRequest, context: Any
    ) -> AsyncIterator[pb.WatchPurchaseResponse]:
        self.watches += 1
        yield pb.WatchPurchaseResponse(purchase=pb.Purchase(state=pb.PURCHASE_STATE_RESERVED))
        await self.leave.wait()
        yield pb.WatchPurchaseResponse(purchase=pb.Purchase(state=pb.PURCHASE_STATE_CONFIRMED))


@asynccontextmanager
async def purchase_service(peers: Peers, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Purchases, str]]:
    purchases = Purchases()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_PurchaseServiceServicer_to_server(purchases, server))
    transport = peers.transport("purchase")
    async with GrpcServer(listen, [register], transport=transport, allowed=ALLOWED, grace_s=0.2) as server:
        await server.serving()
        yield purchases, f"127.0.0.1:{server.port}"


class Asynchronous:
    """The client for asyncio, as the tests use it."""

    def __init__(self, **told: Any) -> None:
        self.client = AsyncClient(**told)

    async def purchase(self, purchase_id: str = "p") -> str:
        return (await self.client.purchase(purchase_id)).purchase_id

    async def states(self) -> list[str]:
        return [state_name(each) async for each in self.client.watch("p")]

    async def close(self) -> None:
        await self.client.close()


class Blocking:
    """The client without asyncio, in threads."""

    def __init__(self, **told: Any) -> None:
        self.client = Client(**told)

    async def purchase(self, purchase_id: str = "p") -> str:
        return (await asyncio.to_thread(self.client.purchase, purchase_id)).purchase_id

    async def states(self) -> list[str]:
        return await asyncio.to_thread(lambda: [state_name(each) for each in self.client.watch("p")])

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)


Kind = type[Asynchronous] | type[Blocking]
both = pytest.mark.parametrize("kind", [Asynchronous, Blocking])


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peers:
    # The files are looked at for each call.
    monkeypatch.setattr(certificates, "LOOK_EVERY_S", 0.0)
    return Peers(tmp_path)


def certified(peers: Peers, **rest: Any) -> bytes:
    """The certificate, in PEM, that the client gets now."""
    return peers.certify(WHO, **rest).certificate.read_bytes().strip()


@asynccontextmanager
async def client(kind: Kind, peers: Peers, *targets: str) -> AsyncIterator[Asynchronous | Blocking]:
    files = peers.files(WHO)
    tls = Tls(files.authorities, files.certificate, files.key)
    # Without gRPC's own repetitions: each failure is seen.
    opened = kind(purchase=targets, tls=tls, policy=Policy(attempts_max=1, timeout_s=20.0))
    try:
        yield opened
    finally:
        await opened.close()


async def until(client: Asynchronous | Blocking, true: Callable[[], bool]) -> None:
    """Calls until something is true. Every call must succeed."""
    async with asyncio.timeout(30):
        while not true():
            assert await client.purchase() == "p"


async def soon(true: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return true()

    await eventually(ask, within_s=30)


def rotation(client: Asynchronous | Blocking) -> Any:
    (channel,) = client.client._channels.values()
    return channel._rotation  # type: ignore[union-attr]


@both
async def test_a_renewed_certificate_is_used_and_nothing_under_way_is_cut(kind: Kind, peers: Peers) -> None:
    old = certified(peers)
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        slow, watch = asyncio.ensure_future(caller.purchase("slow")), asyncio.ensure_future(caller.states())
        await soon(lambda: purchases.slow == 1 and purchases.watches == 1)
        assert set(purchases.seen) == {old}
        new = certified(peers)
        await until(caller, lambda: purchases.seen[-1] == new)
        purchases.leave.set()
        assert await slow == "slow"
        assert await watch == ["RESERVED", "CONFIRMED"]
        # Neither was begun anew.
        assert (purchases.slow, purchases.watches) == (1, 1)


@both
async def test_old_channels_are_closed_after_their_calls_and_nothing_is_left(kind: Kind, peers: Peers) -> None:
    certified(peers)
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        slow = asyncio.ensure_future(caller.purchase("slow"))
        await soon(lambda: purchases.slow == 1)
        first = rotation(caller).now.channel
        threads = threading.active_count()
        for _ in range(10):
            new = certified(peers)
            await until(caller, lambda new=new: purchases.seen[-1] == new)  # type: ignore[misc]
        assert [each.channel for each in rotation(caller)._older] == [first]
        purchases.leave.set()
        await slow
        await soon(lambda: not rotation(caller)._older)
        # gRPC's threads that told of states have ended, and those that closed channels: one serves blocking calls.
        await soon(lambda: threading.active_count() <= threads + 1)
        with pytest.raises(Exception, match=r"(?i)closed"):
            await _called(first)


async def _called(channel: Any) -> None:
    call = channel.unary_unary("/nowhere/Nothing")(b"")
    if isinstance(call, Awaitable):
        await call


@both
async def test_one_authority_is_replaced_by_another_under_traffic(kind: Kind, peers: Peers) -> None:
    lease = PortLease()
    failures: list[FlashsaleError] = []
    done = asyncio.Event()
    old, new = peers.authority, new_authority(datetime.now(UTC))
    certified(peers)
    try:
        one, other = lease.ports.address("purchase"), lease.ports.address("purchase-2")
        first = purchase_service(peers, one)
        purchases, _ = await first.__aenter__()
        async with client(kind, peers, one, other) as caller:

            async def call_on() -> None:
                while not done.is_set():
                    try:
                        await caller.purchase()
                    except FlashsaleError as error:
                        failures.append(error)

            callers = [asyncio.create_task(call_on()) for _ in range(4)]
            peers.trust(old, new)
            peers.certify("purchase", authority=new)
            mine = certified(peers, authority=new)
            await soon(lambda: purchases.seen[-1:] == [mine])
            # Nobody who runs from now on trusts the old authority.
            peers.authority = new
            peers.trust(new)
            async with purchase_service(peers, other) as (others, _):
                await soon(lambda: len(others.seen) > 20)
                await first.__aexit__(None, None, None)
                so_far = len(others.seen)
                await soon(lambda: len(others.seen) > so_far + 20)
                done.set()
                await asyncio.gather(*callers)
        assert failures == []
    finally:
        done.set()
        lease.close()


@both
async def test_a_client_that_was_idle_when_its_certificate_ran_out_loses_no_call(kind: Kind, peers: Peers) -> None:
    old = certified(peers, life=timedelta(seconds=3))
    ends_at = time.time() + 3
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        assert await caller.purchase() == "p"
        assert purchases.seen == [old]
        new = certified(peers)
        await soon(lambda: time.time() > ends_at)
        assert await caller.purchase() == "p"
        assert purchases.seen[-1] == new


@both
async def test_a_watch_goes_on_beyond_the_end_of_the_certificate_it_began_with(kind: Kind, peers: Peers) -> None:
    certified(peers, life=timedelta(seconds=3))
    ends_at = time.time() + 3
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        watch = asyncio.ensure_future(caller.states())
        await soon(lambda: purchases.watches == 1)
        certified(peers)
        await soon(lambda: time.time() > ends_at)
        # The service ends the stream at its next message, which is told by the one that takes its place.
        purchases.leave.set()
        assert await asyncio.wait_for(watch, 20) == ["RESERVED", "CONFIRMED"]
        assert purchases.watches == 2


@both
async def test_a_client_whose_connection_is_lost_connects_with_the_new_certificate(kind: Kind, peers: Peers) -> None:
    lease = PortLease()
    try:
        listen = lease.ports.address("purchase")
        certified(peers)
        async with client(kind, peers, listen) as caller:
            async with purchase_service(peers, listen):
                assert await caller.purchase() == "p"
            # Meanwhile everything is another authority's; the old certificate would be refused.
            peers.authority = new_authority(datetime.now(UTC))
            peers.trust(peers.authority)
            new = certified(peers)
            async with purchase_service(peers, listen) as (purchases, _):
                assert await caller.purchase() == "p"
                assert purchases.seen == [new]
    finally:
        lease.close()


@both
async def test_the_old_certificate_stays_while_nobody_trusts_the_new_one(
    kind: Kind, peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    old = certified(peers)
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        await caller.purchase()
        certified(peers, authority=new_authority(datetime.now(UTC)))
        await until(caller, lambda: rotation(caller).next is not None and rotation(caller).next.refused)
        for _ in range(50):
            await caller.purchase()
        assert set(purchases.seen) == {old}
        told = [record for record in caplog.records if "no connection with the new certificate" in record.getMessage()]
        assert len(told) == 1
        # One more renewal, of the right authority, ends the attempt with the wrong one.
        new = certified(peers)
        await until(caller, lambda: purchases.seen[-1] == new)


@both
async def test_a_client_can_be_closed_in_the_middle_of_a_renewal(kind: Kind, peers: Peers) -> None:
    certified(peers)
    async with purchase_service(peers) as (purchases, target), client(kind, peers, target) as caller:
        slow = asyncio.ensure_future(caller.purchase("slow"))
        await soon(lambda: purchases.slow == 1)
        certified(peers, authority=new_authority(datetime.now(UTC)))
        await caller.purchase()
        generations = rotation(caller)
        channels = [generations.now.channel, generations.next.channel]
        await asyncio.wait_for(caller.close(), 20)
        # As grpc.aio and grpc each tell of a call that is cancelled from here.
        with pytest.raises((FlashsaleError, asyncio.CancelledError)):
            await slow
        for channel in channels:
            with pytest.raises(Exception, match=r"(?i)closed"):
                await _called(channel)
