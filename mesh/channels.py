"""Channels to other services of the mesh, and deadlines that travel with the work."""

from typing import Any

import grpc

from mesh.server import MESSAGE_BYTES_MAX

_OPTIONS = [
    ("grpc.max_receive_message_length", 2 * MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A restarted service is found again within half a second, not after grpc's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Retries are decided by the saga, which knows what is idempotent and when to give up.
    ("grpc.enable_retries", 0),
]

#: Kept back from a caller's deadline for our own answer to reach it, seconds.
_ANSWER_RESERVE_S = 0.02


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel to ``target``; connects at the first call. Close it when the process ends."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


def timeout_s(context: Any, most_s: float) -> float:
    """The timeout, seconds, of a call on behalf of ``context``'s caller: what its deadline leaves, at most ``most_s``.

    Python does not pass deadlines on by itself. Never below 1 ms, so that an expired call fails as DEADLINE_EXCEEDED.
    """
    left = context.time_remaining()
    return most_s if left is None else float(min(most_s, max(0.001, left - _ANSWER_RESERVE_S)))
