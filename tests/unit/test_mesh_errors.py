"""Errors: every reason has one gRPC code and one HTTP status, and survives a real call unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from flashsale.balance.v1 import balance_service_pb2 as pb
from flashsale.balance.v1 import balance_service_pb2_grpc as rpc
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mesh.channels import open_channel
from mesh.errors import DomainError, from_rpc_error, http_status, invalid_argument, reason_name
from mesh.server import GrpcServer

#: What a service says of its peer: nothing for whoever asked that peer.
OF_PEERS = {ErrorReason.ERROR_REASON_UNAUTHENTICATED, ErrorReason.ERROR_REASON_PERMISSION_DENIED}
REASONS = [number for number in ErrorReason.values() if number and number not in OF_PEERS]


class Raising(rpc.BalanceServiceServicer):
    """Raises whatever the test put there."""

    error: Exception = RuntimeError("a secret of the inside")

    async def GetBalance(self, request: Any, context: Any) -> pb.GetBalanceResponse:
        raise self.error


@pytest.fixture
async def raising() -> AsyncIterator[tuple[Raising, rpc.BalanceServiceAsyncStub]]:
    servicer = Raising()  # type: ignore[abstract]
    name = "flashsale.balance.v1.BalanceService"
    registration = (name, lambda server: rpc.add_BalanceServiceServicer_to_server(servicer, server))
    async with GrpcServer("127.0.0.1:0", [registration]) as server:
        await server.serving()
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            yield servicer, rpc.BalanceServiceStub(channel)


@pytest.mark.parametrize("reason", REASONS, ids=reason_name)
async def test_a_reason_survives_a_call(reason: int, raising: tuple[Raising, rpc.BalanceServiceAsyncStub]) -> None:
    servicer, stub = raising
    servicer.error = DomainError(reason, "said to the client", metadata={"k": "v"})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBalance(pb.GetBalanceRequest())
    back = from_rpc_error(caught.value)
    assert (back.reason, back.message, back.metadata) == (reason, "said to the client", {"k": "v"})
    assert back.retry_after_ms == servicer.error.retry_after_ms
    assert 400 <= http_status(reason) < 600


@pytest.mark.parametrize("reason", OF_PEERS, ids=reason_name)
async def test_a_peer_that_is_refused_itself_is_away_to_whoever_asked_it(
    reason: int, raising: tuple[Raising, rpc.BalanceServiceAsyncStub]
) -> None:
    servicer, stub = raising
    servicer.error = DomainError(reason, "gateway may not call GetBalance")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBalance(pb.GetBalanceRequest())
    back = from_rpc_error(caught.value)
    assert (back.reason_name, back.message) == ("UNAVAILABLE", "unavailable")
    assert back.retry_after_ms


async def test_shedding_is_resource_exhausted_with_a_delay(
    raising: tuple[Raising, rpc.BalanceServiceAsyncStub],
) -> None:
    servicer, stub = raising
    servicer.error = DomainError(ErrorReason.ERROR_REASON_OVERLOADED, retry_after_ms=1500)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBalance(pb.GetBalanceRequest())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert servicer.error.retry_after_s == 2


async def test_bad_input_names_every_field(raising: tuple[Raising, rpc.BalanceServiceAsyncStub]) -> None:
    servicer, stub = raising
    servicer.error = invalid_argument(("user_id", "is empty"), ("amount", "is negative"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBalance(pb.GetBalanceRequest())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(caught.value).violations == (("user_id", "is empty"), ("amount", "is negative"))


async def test_an_unexpected_error_keeps_its_text_inside(raising: tuple[Raising, rpc.BalanceServiceAsyncStub]) -> None:
    servicer, stub = raising
    servicer.error = RuntimeError("a secret of the inside")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBalance(pb.GetBalanceRequest())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert from_rpc_error(caught.value).metadata["error_id"]
