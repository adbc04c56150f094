"""What an operator can see of every process."""

import asyncio

import pytest

from tests.support.servers import MeshStack, metrics_text

_EVERYWHERE = (
    "process_resident_memory_bytes",
    "process_open_fds",
)
_ON_GRPC_SERVERS = (
    "grpc_server_call_started_total",
    "grpc_server_call_duration_seconds",
    "flashsale_calls_shed_total",
    "flashsale_calls_under_way",
)
_ON_CALLERS = ("grpc_client_attempt_started_total", "grpc_client_attempt_duration_seconds")
_OWN = {
    "inventory": (
        *_ON_GRPC_SERVERS,
        "flashsale_stock_units",
        "flashsale_waitlist_requests",
        "flashsale_recalibrations_total",
        "flashsale_recalibration_seconds",
    ),
    "balance": _ON_GRPC_SERVERS,
    "purchase": (
        *_ON_GRPC_SERVERS,
        *_ON_CALLERS,
        "flashsale_purchases_unbegun",
        "flashsale_purchases_unqueued",
        "flashsale_watches",
    ),
    "settlement": (
        *_ON_CALLERS,
        "flashsale_settled_purchases_total",
        "flashsale_settlement_rate_max_per_s",
        "flashsale_settlement_purchases",
        "flashsale_settlement_oldest_seconds",
        "flashsale_refund_oldest_seconds",
        "flashsale_settlement_messages",
    ),
    "gateway": (
        *_ON_CALLERS,
        "gateway_answers_total",
        "gateway_refused_at_door_total",
        "gateway_purchase_seconds",
        "gateway_queue_requests",
        "gateway_queue_requests_max",
    ),
}


@pytest.mark.parametrize("kind", _OWN)
async def test_every_process_shows_its_metrics_on_a_port_of_its_own(mesh_stack: MeshStack, kind: str) -> None:
    text = await asyncio.to_thread(metrics_text, mesh_stack, kind)
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert {*_EVERYWHERE, *_OWN[kind]} <= named
    if kind == "settlement":
        # Once it has looked, which it does every few seconds.
        looked = ('\nflashsale_settlement_purchases{state="waiting"}', "\nflashsale_settlement_messages{queue=")
        async with asyncio.timeout(30):
            while not all(each in text for each in looked):
                await asyncio.sleep(0.2)
                text = await asyncio.to_thread(metrics_text, mesh_stack, kind)
