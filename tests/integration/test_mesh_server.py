"""The gRPC server every service is made of: errors, limits, deadlines, health, reflection and draining."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.inventory.v1 import inventory_service_pb2 as pb
from flashsale.inventory.v1 import inventory_service_pb2_grpc as pb_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from mesh.call_metrics import ChannelMetrics
from mesh.channels import open_channel, timeout_s
from mesh.errors import DomainError, from_rpc_error, invalid_argument
from mesh.health import NOTICE_S
from mesh.interceptors import LimitLayer, Limits
from mesh.metrics import Metrics
from mesh.server import GrpcServer
from mesh.settings import SettingsError

SERVICE = pb.DESCRIPTOR.services_by_name["InventoryService"].full_name
BUF = Path(sys.executable).with_name("buf")


class Probe(pb_grpc.InventoryServiceServicer):
    """Answers as the sale id says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()
        self.time_left_s: float | None = None
        self.begun = 0

    async def OpenSale(self, request: pb.OpenSaleRequest, context: Any) -> pb.OpenSaleResponse:
        await self.GetSale(pb.GetSaleRequest(sale_id=request.sale_id), context)
        return pb.OpenSaleResponse()

    async def GetSale(self, request: pb.GetSaleRequest, context: Any) -> pb.GetSaleResponse:
        self.begun += 1
        self.time_left_s = timeout_s(context, 30.0)
        match request.sale_id:
            case "wait":
                self.entered.set()
                await self.leave.wait()
            case "sold-out":
                raise DomainError(ErrorReason.ERROR_REASON_SOLD_OUT, metadata={"sale_id": "x"})
            case "bad":
                raise invalid_argument(("sale_id", "must be a UUID"))
            case "crash":
                raise RuntimeError("the password is hunter2")
        return pb.GetSaleResponse()

    async def WatchStock(self, request: pb.WatchStockRequest, context: Any) -> AsyncIterator[pb.WatchStockResponse]:
        yield pb.WatchStockResponse()
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)


@asynccontextmanager
async def probed(**limits: Any) -> AsyncIterator[tuple[Probe, Any, GrpcServer]]:
    probe = Probe()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(probe, server))
    async with GrpcServer("127.0.0.1:0", [register], **limits) as server:
        await server.serving()
        channel = open_channel(f"127.0.0.1:{server.port}")
        async with channel:
            yield probe, pb_grpc.InventoryServiceStub(channel), server


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    found = []
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found.append(message)
    return found


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_refusal_arrives_with_reason_domain_and_metadata() -> None:
    async with probed() as (_, stub, _server):
        error = await failure(stub.GetSale(pb.GetSaleRequest(sale_id="sold-out")))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        (info,) = details(error)
        assert (info.reason, info.domain, dict(info.metadata)) == ("SOLD_OUT", "flashsale", {"sale_id": "x"})
        assert from_rpc_error(error).reason == ErrorReason.ERROR_REASON_SOLD_OUT


async def test_bad_input_arrives_with_the_field() -> None:
    async with probed() as (_, stub, _server):
        error = await failure(stub.GetSale(pb.GetSaleRequest(sale_id="bad")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(error)[1].field_violations[0].field == "sale_id"
        assert from_rpc_error(error).violations == (("sale_id", "must be a UUID"),)


async def test_an_unexpected_error_tells_the_client_an_id_and_nothing_else() -> None:
    async with probed() as (_, stub, _server):
        error = await failure(stub.GetSale(pb.GetSaleRequest(sale_id="crash")))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "hunter2" not in str(error)
        assert len(details(error)[0].metadata["error_id"]) == 12


async def test_a_stream_that_fails_ends_with_its_reason_and_a_delay() -> None:
    async with probed() as (_, stub, _server):
        call = stub.WatchStock(pb.WatchStockRequest())
        assert await call.read() is not grpc.aio.EOF
        error = await failure(call.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error)[1].retry_delay.ToMilliseconds() > 0


async def test_calls_beyond_the_limit_are_shed_and_health_still_answers() -> None:
    async with probed(limits=Limits(calls_max=1)) as (probe, stub, server):
        first = asyncio.ensure_future(stub.GetSale(pb.GetSaleRequest(sale_id="wait")))
        await probe.entered.wait()
        error = await failure(stub.GetSale(pb.GetSaleRequest()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert from_rpc_error(error).retry_after_ms > 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        probe.leave.set()
        await first
        await stub.GetSale(pb.GetSaleRequest())


async def test_critical_calls_are_shed_last() -> None:
    limits = Limits(calls_max=1, critical=frozenset({"OpenSale"}))
    async with probed(limits=limits) as (probe, stub, _server):
        first = asyncio.ensure_future(stub.GetSale(pb.GetSaleRequest(sale_id="wait")))
        await probe.entered.wait()
        probe.entered.clear()
        second = asyncio.ensure_future(stub.OpenSale(pb.OpenSaleRequest(sale_id="wait")))
        await probe.entered.wait()
        for call in (stub.GetSale(pb.GetSaleRequest()), stub.OpenSale(pb.OpenSaleRequest())):
            assert (await failure(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        probe.leave.set()
        await asyncio.gather(first, second)


async def test_a_call_whose_deadline_has_passed_is_not_begun() -> None:
    async with probed() as (probe, stub, server):
        await stub.GetSale(pb.GetSaleRequest())
        begun = probe.begun
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=5)
            late: Any = pb_grpc.InventoryServiceStub(channel)
            # This loop, which is the server's too, stands still until the client has given up.
            with pytest.raises(grpc.RpcError) as caught:
                late.GetSale(pb.GetSaleRequest(), timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await stub.GetSale(pb.GetSaleRequest())
        assert probe.begun == begun + 1


class LateContext:
    """A call whose deadline has passed on its way through the process."""

    def time_remaining(self) -> float:
        return 0.0


async def test_what_comes_too_late_is_dropped_and_counted() -> None:
    metrics = Metrics()
    limit = LimitLayer(Limits(), metrics.counts("shed", "Shed", ("grpc_method", "reason")))
    begun: list[object] = []

    async def handler(request: object, context: object) -> None:
        begun.append(request)

    for method in ("GetSale", "OpenSale"):
        wrapped = limit.wrap(grpc.unary_unary_rpc_method_handler(handler), f"/s/{method}")
        with pytest.raises(DomainError) as caught:
            await wrapped.unary_unary(None, LateContext())  # type: ignore[misc,arg-type]
        assert caught.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    assert not begun
    assert 'shed_total{grpc_method="s/GetSale",reason="deadline"} 1.0' in metrics.text().decode().splitlines()


async def test_calls_are_counted_by_method_and_status_on_both_sides() -> None:
    served, called = Metrics(), Metrics()
    async with probed(metrics=served) as (_, _stub, server):
        target = f"127.0.0.1:{server.port}"
        async with open_channel(target, ChannelMetrics(called)) as channel:
            stub: Any = pb_grpc.InventoryServiceStub(channel)
            await stub.GetSale(pb.GetSaleRequest(), timeout=5)
            await failure(stub.GetSale(pb.GetSaleRequest(sale_id="sold-out")))
            call = stub.WatchStock(pb.WatchStockRequest())
            await call.read()
            await failure(call.read())
    method = f'grpc_method="{SERVICE}/GetSale"'
    lines = served.text().decode().splitlines()
    assert f"grpc_server_call_started_total{{{method}}} 2.0" in lines
    for status in ("OK", "FAILED_PRECONDITION"):
        count = f'grpc_server_call_duration_seconds_count{{{method},grpc_status="{status}"}} 1.0'
        assert count in lines
        assert (
            f'grpc_client_attempt_duration_seconds_count{{{method},grpc_status="{status}",grpc_target="{target}"}} 1.0'
            in called.text().decode().splitlines()
        )
    watch = f'grpc_method="{SERVICE}/WatchStock"'
    assert f'grpc_server_call_duration_seconds_count{{{watch},grpc_status="UNAVAILABLE"}} 1.0' in lines
    assert f'grpc_client_attempt_started_total{{{watch},grpc_target="{target}"}} 1.0' in called.text().decode()


async def test_a_deadline_travels_with_the_work() -> None:
    async with probed() as (probe, stub, _server):
        await stub.GetSale(pb.GetSaleRequest(), timeout=0.5)
        assert probe.time_left_s is not None
        assert 0 < probe.time_left_s < 0.5
        await stub.GetSale(pb.GetSaleRequest())
        assert probe.time_left_s == 30.0


async def test_cancelled_calls_give_their_place_back() -> None:
    async with probed(limits=Limits(calls_max=1)) as (probe, stub, _server):
        for _ in range(20):
            probe.entered.clear()
            call = stub.GetSale(pb.GetSaleRequest(sale_id="wait"))
            task = asyncio.ensure_future(call)
            await probe.entered.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The server learns of it a moment later; until then it may only say that it is busy.
            async with asyncio.timeout(5):
                while True:
                    try:
                        await stub.GetSale(pb.GetSaleRequest())
                        break
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                            raise


async def test_draining_says_not_serving_and_lets_calls_under_way_finish() -> None:
    probe = Probe()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(probe, server))
    server = GrpcServer("127.0.0.1:0", [register], grace_s=5)
    await server.__aenter__()
    await server.serving()
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))  # type: ignore[attr-defined]
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = asyncio.ensure_future(stub.GetSale(pb.GetSaleRequest(sale_id="wait")))
        await probe.entered.wait()
        leaving = asyncio.ensure_future(server.__aexit__(None, None, None))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        probe.leave.set()
        assert isinstance(await call, pb.GetSaleResponse)
        await leaving


async def test_whoever_watches_health_is_given_notice_before_calls_are_refused() -> None:
    probe = Probe()  # type: ignore[abstract]
    register = (SERVICE, lambda server: pb_grpc.add_InventoryServiceServicer_to_server(probe, server))
    server = GrpcServer("127.0.0.1:0", [register], grace_s=5)
    await server.__aenter__()
    await server.serving()
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = pb_grpc.InventoryServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))  # type: ignore[attr-defined]
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        leaving = asyncio.ensure_future(server.__aexit__(None, None, None))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Who had already sent its call when it heard of it is served.
        await stub.GetSale(pb.GetSaleRequest())
        # The watch ends with the server, and does not use up the time that calls under way are given.
        assert await watch.read() is grpc.aio.EOF
        async with asyncio.timeout(2):
            await leaving


async def test_where_nobody_watches_nobody_is_waited_for() -> None:
    server = GrpcServer("127.0.0.1:0", [], grace_s=5)
    await server.__aenter__()
    await server.serving()
    began = asyncio.get_running_loop().time()
    await server.__aexit__(None, None, None)
    assert asyncio.get_running_loop().time() - began < NOTICE_S


async def test_reflection_lists_and_calls_without_the_proto_files(tmp_path: Path) -> None:
    async with probed() as (_, _stub, server):
        base = f"http://127.0.0.1:{server.port}"
        common = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
        listed = await asyncio.to_thread(_run, [*common, "--list-services", base], tmp_path)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(listed.stdout.split()), listed.stderr
        called = await asyncio.to_thread(
            _run, [*common, "--data", '{"sale_id": "sold-out"}', f"{base}/{SERVICE}/GetSale"], tmp_path
        )
        assert called.returncode != 0
        assert "failed_precondition" in called.stderr


def _run(command: list[str], cache: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"HOME": str(cache), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)


async def test_a_taken_port_is_one_line_that_names_it() -> None:
    async with probed() as (_, _stub, server):
        with pytest.raises(SettingsError, match=f"127.0.0.1:{server.port}"):
            async with GrpcServer(f"127.0.0.1:{server.port}", []):
                pass
