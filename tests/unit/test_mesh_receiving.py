"""Which request gives way when too many are on their way, and what is given back when one does."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from mesh.metrics import Metrics
from mesh.receiving import ReceiveLayer, ReceivingBounds


class Caller:
    """A call whose request comes when the test says so. As of grpc.aio's, a read that waits ends by an abort, whoever
    aborts; there is one AbortError for a call, and a second abort is an error of use."""

    def __init__(self) -> None:
        self.request: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.code: grpc.StatusCode | None = None
        self.aborted = grpc.aio.AbortError("aborted")

    async def read(self) -> Any:
        raw = await self.request
        if self.code is not None:
            raise self.aborted
        return raw

    async def abort_with_status(self, status: Any) -> None:
        if self.code is not None:
            raise grpc.aio.UsageError("aborted already")
        self.code = status.code
        if not self.request.done():
            self.request.set_exception(self.aborted)
        raise self.aborted


class Server:
    """A layer around a handler that waits to be let go."""

    def __init__(self, **bounds: Any) -> None:
        self.metrics = Metrics()
        refused = self.metrics.counts("refused", "Refused", ("grpc_method", "reason"))
        self.layer = ReceiveLayer(ReceivingBounds(**bounds), refused)
        self.answered: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()

        async def answer(request: bytes, _context: Any) -> bytes:
            await self.go.wait()
            self.answered.append(request)
            return request

        def parse(octets: bytes) -> bytes:
            if octets == b"broken":
                raise DecodeError("secret details")
            return octets

        handler: Any = grpc.unary_unary_rpc_method_handler(answer, parse)
        self._handler: Any = self.layer.wrap(handler, "/s/M").stream_unary

    async def begin(self) -> "tuple[Caller, asyncio.Task[bytes]]":
        caller = Caller()
        task = asyncio.ensure_future(self._handler(None, caller))
        # Until it waits for its request.
        await asyncio.sleep(0)
        return caller, task

    def refused(self, why: str) -> bool:
        return f'refused_total{{grpc_method="s/M",reason="{why}"}} 1.0' in self.metrics.text().decode()


async def ended(task: "asyncio.Task[bytes]") -> None:
    with pytest.raises(grpc.aio.AbortError):
        await asyncio.wait_for(task, 5)


async def test_a_request_that_comes_is_handed_on() -> None:
    server = Server()
    caller, task = await server.begin()
    assert server.layer.incomplete == 1
    caller.request.set_result(b"hello")
    assert await task == b"hello"
    assert server.layer.incomplete == server.layer.bytes_under_way == 0


async def test_the_oldest_gives_way_to_the_next_once_it_is_old() -> None:
    server = Server(incomplete_max=2, fresh_s=0.05)
    slow, first = await server.begin()
    _, second = await server.begin()
    await asyncio.sleep(0.06)
    newcomer, third = await server.begin()
    await ended(first)
    assert slow.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.refused("crowded")
    newcomer.request.set_result(b"new")
    assert await third == b"new"
    assert not second.done()
    second.cancel()


async def test_fresh_ones_may_be_many_but_not_without_bound() -> None:
    server = Server(incomplete_max=1, incomplete_hard_max=5, fresh_s=60.0)
    calls = [await server.begin() for _ in range(5)]
    await asyncio.sleep(0)
    assert not any(task.done() for _, task in calls)
    calls.append(await server.begin())
    await ended(calls[0][1])
    assert not any(task.done() for _, task in calls[1:])
    for _, task in calls[1:]:
        task.cancel()


async def test_a_crowd_is_thinned_out_without_anybody_new() -> None:
    server = Server(incomplete_max=1, fresh_s=0.05)
    calls = [await server.begin() for _ in range(3)]
    assert not any(task.done() for _, task in calls)
    await ended(calls[0][1])
    await ended(calls[1][1])
    assert not calls[2][1].done()
    calls[2][1].cancel()


async def test_whatever_does_not_come_in_time_is_refused_and_what_began_later_has_its_own_time() -> None:
    server = Server(wait_s=0.1)
    slow, first = await server.begin()
    await asyncio.sleep(0.05)
    later, second = await server.begin()
    await ended(first)
    assert slow.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not second.done()
    await ended(second)
    assert later.code is grpc.StatusCode.DEADLINE_EXCEEDED
    # The next one is watched over too.
    _, third = await server.begin()
    await ended(third)


async def test_a_caller_that_leaves_is_no_refusal() -> None:
    server = Server()
    caller, task = await server.begin()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.code is None
    assert server.layer.incomplete == 0
    assert "reason" not in server.metrics.text().decode()


async def test_a_request_that_comes_as_it_is_given_up_is_answered_and_only_once() -> None:
    server = Server()
    caller, task = await server.begin()
    (reading,) = server.layer._readings
    caller.request.set_result(b"just in time")
    server.layer._give_up(reading, "late", asyncio.get_running_loop())
    assert await asyncio.wait_for(task, 5) == b"just in time"
    await asyncio.sleep(0)
    assert caller.code is None


async def test_a_request_that_comes_when_it_has_been_refused_is_not_answered() -> None:
    server = Server()
    caller, task = await server.begin()
    (reading,) = server.layer._readings
    server.layer._give_up(reading, "late", asyncio.get_running_loop())
    caller.request.set_result(b"too late")
    await ended(task)
    assert caller.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not server.answered


async def test_a_caller_that_leaves_without_a_request_is_not_answered() -> None:
    """grpc.aio reads the end of the requests then, and cancels the call after that."""
    server = Server()
    caller, task = await server.begin()
    caller.request.set_result(grpc.aio.EOF)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.code is None
    assert "reason" not in server.metrics.text().decode()


async def test_large_requests_share_a_budget_that_is_given_back() -> None:
    server = Server(bytes_max=100, small_bytes=10)
    server.go.clear()
    large, first = await server.begin()
    large.request.set_result(b"x" * 80)
    above, second = await server.begin()
    above.request.set_result(b"x" * 30)
    small, third = await server.begin()
    small.request.set_result(b"x" * 10)
    await ended(second)
    assert above.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.refused("bytes")
    assert server.layer.bytes_under_way == 90
    server.go.set()
    await asyncio.gather(first, third)
    assert server.layer.bytes_under_way == 0


@pytest.mark.parametrize(("request_", "why"), [(grpc.aio.EOF, "missing"), (b"broken", "malformed")])
async def test_no_request_and_one_that_cannot_be_parsed_are_the_client_s_fault(request_: Any, why: str) -> None:
    server = Server()
    caller, task = await server.begin()
    caller.request.set_result(request_)
    await ended(task)
    assert caller.code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.refused(why)
    assert server.layer.bytes_under_way == 0
    assert not server.answered
