"""What the client sends again and what it does not, to servers that answer as they are told."""

import asyncio
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as pb
from flashsale.purchase.v1 import purchase_service_pb2_grpc as pb_grpc
from flashsale_client import AsyncClient, Client, FlashsaleError, Policy, Wish, reasons, state_name

from mesh.errors import DomainError
from mesh.health import NOTICE_S
from mesh.server import GrpcServer
from stack.ports import PortLease

SERVICE = pb.DESCRIPTOR.services_by_name["PurchaseService"].full_name
R = ErrorReason
RESERVED = pb.Purchase(purchase_id="p", state=pb.PURCHASE_STATE_RESERVED)
CONFIRMED = pb.Purchase(purchase_id="p", state=pb.PURCHASE_STATE_CONFIRMED)


class Scripted(pb_grpc.PurchaseServiceServicer):
    """Answers each call with what is next in its script, and then well."""

    def __init__(self) -> None:
        #: An error to raise, a sequence of states to stream, or None for "answers well".
        self.script: deque[Any] = deque()
        #: Once the script is at its end: instead of a good answer.
        self.always: DomainError | None = None
        self.calls: list[float] = []
        #: Of each CreatePurchase.
        self.request_ids: list[str] = []
        self.left_s: list[float | None] = []
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def _next(self, context: Any) -> Any:
        self.calls.append(time.monotonic())
        self.left_s.append(context.time_remaining())
        step = self.script.popleft() if self.script else self.always
        if isinstance(step, DomainError):
            raise step
        if step == "wait":
            self.entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return step

    async def CreatePurchase(self, request: pb.CreatePurchaseRequest, context: Any) -> pb.CreatePurchaseResponse:
        self.request_ids.append(request.request_id)
        await self._next(context)
        return pb.CreatePurchaseResponse(purchase=RESERVED)

    async def GetPurchase(self, request: pb.GetPurchaseRequest, context: Any) -> pb.GetPurchaseResponse:
        await self._next(context)
        return pb.GetPurchaseResponse(purchase=RESERVED)

    async def BatchCreatePurchases(
        self, request: pb.BatchCreatePurchasesRequest, context: Any
    ) -> pb.BatchCreatePurchasesResponse:
        step = await self._next(context)
        outcomes = [
            pb.CreatePurchaseOutcome(purchase_id=each.user_id, state=pb.PURCHASE_STATE_RESERVED)
            if each.user_id not in (step or ())
            else pb.CreatePurchaseOutcome(reason=R.ERROR_REASON_OVERLOADED, retry_after_ms=200)
            for each in request.requests
        ]
        return pb.BatchCreatePurchasesResponse(outcomes=outcomes)

    async def WatchPurchase(
        self, request: pb.WatchPurchaseRequest, context: Any
    ) -> AsyncIterator[pb.WatchPurchaseResponse]:
        steps = await self._next(context)
        for step in steps or (CONFIRMED,):
            if isinstance(step, DomainError):
                raise step
            yield pb.WatchPurchaseResponse(purchase=step)


@asynccontextmanager
async def scripted(listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Scripted, str]]:
    servicer = Scripted()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_PurchaseServiceServicer_to_server(servicer, server))
    async with GrpcServer(listen, [register], grace_s=0.1) as server:
        await server.serving()
        yield servicer, f"127.0.0.1:{server.port}"


async def test_what_is_told_to_come_again_waits_as_long_as_told() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.script.extend([DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=300)] * 2)
        assert (await client.buy("s", "u")).purchase_id == "p"
    pauses = [later - sooner for sooner, later in zip(servicer.calls, servicer.calls[1:], strict=False)]
    assert len(pauses) == 2
    assert all(0.3 <= pause < 1.0 for pause in pauses)


async def test_each_buy_has_a_request_id_of_its_own_however_often_it_is_sent() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        # Once more by gRPC, once more by the client, and another buy.
        away, busy = DomainError(R.ERROR_REASON_UNAVAILABLE), DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=10)
        servicer.script.extend([away, busy])
        await client.buy("s", "u")
        await client.buy("s", "u")
        await client.buy("s", "u", request_id="mine")
    first, again, once_more, second, third = servicer.request_ids
    assert first
    assert first == again == once_more
    assert second not in ("", first)
    assert third == "mine"


async def test_it_comes_again_only_so_often_and_only_within_the_deadline() -> None:
    async with scripted() as (servicer, target):
        servicer.always = DomainError(R.ERROR_REASON_USER_RATE_LIMITED, retry_after_ms=20)
        async with AsyncClient(purchase=target, policy=Policy(repetitions_max=3)) as client:
            with pytest.raises(reasons.UserRateLimited) as caught:
                await client.buy("s", "u", request_id="mine")
            assert (caught.value.request_id, caught.value.retry_after_s) == ("mine", 0.02)
            assert len(servicer.calls) == 4
            servicer.always = DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=5_000)
            with pytest.raises(reasons.Overloaded):
                await client.buy("s", "u", timeout_s=1.0)
            assert len(servicer.calls) == 5


async def test_a_busy_service_that_does_not_say_when_is_not_asked_again() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.always = DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=0)
        with pytest.raises(reasons.Overloaded):
            await client.buy("s", "u")
        assert len(servicer.calls) == 1


@pytest.mark.parametrize("reason", ["SOLD_OUT", "INTERNAL", "REQUEST_ID_REUSED", "DEADLINE_EXCEEDED", "NOT_ELIGIBLE"])
async def test_what_is_decided_or_broken_is_not_sent_again(reason: str) -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.always = DomainError(ErrorReason.Value(f"ERROR_REASON_{reason}"), metadata={"sale_id": "s"})
        with pytest.raises(FlashsaleError) as caught:
            await client.buy("s", "u")
        assert (caught.value.reason, caught.value.metadata) == (reason, {"sale_id": "s"})
        assert len(servicer.calls) == 1


async def test_what_is_unavailable_is_sent_again_by_grpc_and_not_for_ever() -> None:
    async with scripted() as (servicer, target):
        async with AsyncClient(purchase=target) as client:
            servicer.script.append(DomainError(R.ERROR_REASON_STOCK_RECALIBRATING))
            await client.buy("s", "u")
            assert len(servicer.calls) == 2
        servicer.calls.clear()
        servicer.always = DomainError(R.ERROR_REASON_UNAVAILABLE)
        async with AsyncClient(purchase=target, policy=Policy(attempts_max=3)) as client:
            with pytest.raises(reasons.Unavailable):
                await client.buy("s", "u")
        assert len(servicer.calls) == 3


async def test_retries_stop_when_most_calls_fail() -> None:
    async with scripted() as (servicer, target):
        servicer.always = DomainError(R.ERROR_REASON_UNAVAILABLE)
        async with AsyncClient(purchase=target, policy=Policy(failures_max=10, backoff_s=0.01)) as client:
            for _ in range(60):
                with pytest.raises(reasons.Unavailable):
                    await client.buy("s", "u")
    # Sixty first tries, and repetitions only for the first ten failures. Without a throttle it would be 240.
    assert 60 <= len(servicer.calls) <= 72


async def test_every_call_has_a_deadline_that_the_service_is_told() -> None:
    policy = Policy(timeout_s=2.0, buy_timeout_s=4.0)
    async with scripted() as (servicer, target), AsyncClient(purchase=target, policy=policy) as client:
        await client.purchase("p")
        await client.buy("s", "u")
        await client.buy("s", "u", timeout_s=1.0)
        # Also a call that goes past everything the client does.
        await client.purchases.GetPurchase(pb.GetPurchaseRequest(purchase_id="p"))
        for left_s, most_s in zip(servicer.left_s, (2.0, 4.0, 1.0, 2.0), strict=True):
            assert left_s is not None
            # gRPC sends a deadline rounded up.
            assert most_s - 0.5 < left_s <= most_s + 0.1
        servicer.script.append("wait")
        with pytest.raises(reasons.DeadlineExceeded) as caught:
            await client.buy("s", "u", request_id="mine", timeout_s=0.2)
        assert caught.value.request_id == "mine"
        # Whoever is told that time is up is not worked for any longer.
        await asyncio.wait_for(servicer.cancelled.wait(), 5)


async def test_a_call_that_is_cancelled_is_cancelled_at_the_service() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.script.append("wait")
        task = asyncio.create_task(client.buy("s", "u"))
        await asyncio.wait_for(servicer.entered.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(servicer.cancelled.wait(), 5)


async def test_only_the_items_that_were_told_to_come_again_do() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.script.extend([("u1", "u2"), ("u2",)])
        answers = await client.buy_many([Wish("s", f"u{number}") for number in range(4)])
        assert [answer.purchase_id for answer in answers] == ["u0", "u1", "u2", "u3"]
        assert all(answer.bought for answer in answers)
        assert len(servicer.calls) == 3
        assert servicer.calls[1] - servicer.calls[0] >= 0.2


async def test_a_batch_that_is_refused_as_a_whole_comes_again_no_more_often_than_a_call() -> None:
    async with scripted() as (servicer, target):
        servicer.always = DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=20)
        async with AsyncClient(purchase=target, policy=Policy(repetitions_max=2)) as client:
            answers = await client.buy_many([Wish("s", "u0"), Wish("s", "u1")])
        assert [type(answer.error) for answer in answers] == [reasons.Overloaded] * 2
        assert len(servicer.calls) == 3


async def test_a_watch_that_breaks_off_goes_on_and_tells_no_state_twice() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        broken = DomainError(R.ERROR_REASON_UNAVAILABLE)
        # Broken off after a message, before one, and ended by itself.
        servicer.script.extend([(RESERVED, broken), broken, (RESERVED,), (RESERVED, CONFIRMED)])
        assert [state_name(each) async for each in client.watch("p")] == ["RESERVED", "CONFIRMED"]
        assert len(servicer.calls) == 4


async def test_a_watch_that_outlives_the_certificate_it_began_with_goes_on_and_one_that_is_refused_ends() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        expired = DomainError(R.ERROR_REASON_UNAUTHENTICATED)
        servicer.script.extend([(RESERVED, expired), (RESERVED, expired), (RESERVED, CONFIRMED)])
        assert [state_name(each) async for each in client.watch("p")] == ["RESERVED", "CONFIRMED"]
        servicer.script.extend([(RESERVED, expired), expired])
        with pytest.raises(reasons.Unauthenticated):
            await client.outcome("p")
        assert len(servicer.calls) == 5


async def test_a_watch_ends_when_there_is_nothing_to_watch_or_time_is_up() -> None:
    async with scripted() as (servicer, target), AsyncClient(purchase=target) as client:
        servicer.script.append(DomainError(R.ERROR_REASON_PURCHASE_NOT_FOUND))
        with pytest.raises(reasons.PurchaseNotFound):
            await client.outcome("p")
        servicer.script.append("wait")
        with pytest.raises(reasons.DeadlineExceeded):
            await client.outcome("p", timeout_s=0.3)


async def test_without_asyncio_the_policy_is_the_same() -> None:
    async with scripted() as (servicer, target):
        servicer.script.append(DomainError(R.ERROR_REASON_OVERLOADED, retry_after_ms=200))

        def use() -> None:
            with Client(purchase=target, policy=Policy(repetitions_max=2)) as client:
                assert client.buy("s", "u").purchase_id == "p"
                assert servicer.calls[1] - servicer.calls[0] >= 0.2
                broken = DomainError(R.ERROR_REASON_UNAVAILABLE)
                servicer.script.extend([(RESERVED, broken), (RESERVED, CONFIRMED)])
                assert [state_name(each) for each in client.watch("p")] == ["RESERVED", "CONFIRMED"]
                servicer.script.extend([("u1",)])
                assert [answer.purchase_id for answer in client.buy_many([Wish("s", "u0"), Wish("s", "u1")])] == [
                    "u0",
                    "u1",
                ]
                request = pb.GetPurchaseRequest(purchase_id="p")
                client.purchases.GetPurchase.with_call(request)
                client.purchases.GetPurchase.future(request).result()
                assert None not in servicer.left_s
                servicer.always = DomainError(R.ERROR_REASON_SOLD_OUT)
                with pytest.raises(reasons.SoldOut):
                    client.buy("s", "u")

        await asyncio.to_thread(use)


async def test_a_client_without_asyncio_may_be_used_from_several_threads() -> None:
    async with scripted() as (servicer, target):
        with Client(purchase=target) as client:

            def use() -> None:
                for _ in range(20):
                    assert client.buy("s", "u").purchase_id == "p"

            await asyncio.gather(*(asyncio.to_thread(use) for _ in range(8)))
    assert len(set(servicer.request_ids)) == 160


async def test_nobody_is_sent_to_a_replica_that_is_about_to_end() -> None:
    lease = PortLease()
    try:
        one, other = lease.ports.address("purchase"), lease.ports.address("purchase-2")
        first, second = scripted(one), scripted(other)
        ending, _ = await first.__aenter__()
        async with second as (staying, _), AsyncClient(purchase=[one, other], policy=Policy(attempts_max=1)) as client:
            done = asyncio.Event()
            failures: list[BaseException] = []

            async def call_on() -> None:
                while not done.is_set():
                    try:
                        await client.purchase("p")
                    except FlashsaleError as error:
                        failures.append(error)

            callers = [asyncio.create_task(call_on()) for _ in range(8)]
            while not (len(ending.calls) > 50 and len(staying.calls) > 50):
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await first.__aexit__(None, None, None)
            ended = time.monotonic()
            # It has waited for clients to go elsewhere, still taking calls; and this one has gone.
            assert ended - began >= NOTICE_S
            assert [when for when in ending.calls if when > began + 0.8 * NOTICE_S] == []
            before = len(staying.calls)
            while len(staying.calls) < before + 50:
                await asyncio.sleep(0.01)
            done.set()
            await asyncio.gather(*callers)
            # Not even one that would have had to be sent again.
            assert failures == []
    finally:
        lease.close()


@dataclass
class Replica:
    """A server in a process of its own, at one of the addresses behind a name."""

    listen: str
    process: asyncio.subprocess.Process = field(init=False)

    async def start(self) -> None:
        """Returns when it serves."""
        program = (sys.executable, "-m", "tests.support.replica", self.listen)
        self.process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line == b"serving\n":
                return
        raise AssertionError(f"{self.listen} did not come up")

    async def kill(self) -> None:
        """As a machine that loses its power, but for its kernel."""
        self.process.kill()
        await self.process.wait()


def has_ipv6_loopback() -> bool:
    """Some containers have none."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6_loopback(), reason="there is only one address behind localhost here")
async def test_no_call_fails_when_one_of_two_addresses_behind_a_name_is_lost_under_load() -> None:
    lease = PortLease()
    port = lease.ports.address("purchase").rpartition(":")[2]
    one, other = Replica(f"127.0.0.1:{port}"), Replica(f"[::1]:{port}")
    answers: Counter[str] = Counter()
    failures: list[FlashsaleError] = []
    async with AsyncClient(purchase=f"dns:///localhost:{port}") as client:

        async def call_on() -> None:
            while True:
                try:
                    answers[(await client.purchase("p")).purchase_id] += 1
                except FlashsaleError as error:
                    failures.append(error)

        async def both_have_answered() -> None:
            answers.clear()
            async with asyncio.timeout(20):
                while not (answers[one.listen] > 50 and answers[other.listen] > 50):
                    await asyncio.sleep(0.01)

        await asyncio.gather(one.start(), other.start())
        callers = [asyncio.create_task(call_on()) for _ in range(8)]
        try:
            for lost in (one, other):
                await both_have_answered()
                await lost.kill()
                answers.clear()
                async with asyncio.timeout(20):
                    while answers.total() < 100:
                        await asyncio.sleep(0.01)
                await lost.start()
            await both_have_answered()
            assert failures == []
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await asyncio.gather(one.kill(), other.kill())
            lease.close()
