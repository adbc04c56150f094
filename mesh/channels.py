"""Channels to other services of the mesh, and deadlines that travel with the work."""

from typing import Any

import grpc

from mesh.call_metrics import ChannelMetrics
from mesh.peer_limits import CHANNEL_LIMITS
from mesh.transport import PLAINTEXT, Transport

_OPTIONS = [
    # A target may list several replicas of a service. Each call goes to the next one that is connected.
    ("grpc.lb_policy_name", "round_robin"),
    *CHANNEL_LIMITS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # What ends a connection that answers no ping; keepalive_timeout_ms alone does not (grpc#39239: measured 70 s).
    ("grpc.http2.ping_timeout_ms", 3_000),
    # A restarted service is found again within half a second, not after grpc's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # For so long an attempt to connect may take; the pauses after a refused one are those above. With 100 ms nobody
    # could connect to a service that took longer than 0.6 s to say hello: an overload that cuts lines would last.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Retries are decided by the saga, which knows what is idempotent and when to give up.
    ("grpc.enable_retries", 0),
]

#: Kept back from a caller's deadline for our own answer to reach it, seconds.
_ANSWER_RESERVE_S = 0.02


def open_channel(
    target: str, calls: ChannelMetrics | None = None, *, transport: Transport = PLAINTEXT, service: str = ""
) -> grpc.aio.Channel:
    """A channel to ``target``; connects at the first call. Close it when the process ends. ``calls`` counts its calls.

    ``service`` is the kind of service that the other side must prove to be where ``transport`` has certificates:
    "inventory", "balance" ... Raises SettingsError for a target beyond loopback without certificates.

    ``target`` is host:port, or all replicas of a service: ``ipv4:127.0.0.1:7051,127.0.0.1:7151``. Calls go to the
    connected ones in turn; a stream stays with the replica it began on. What a caller sees when one of two is lost:

    * Ended by SIGKILL: UNAVAILABLE, within some 5 ms, for each call under way on it, and for those sent to it in the
      moment before the lost connection is noticed (measured at 3,000 calls/s: 0 to 6). Whether these took effect is
      unknown. Every later call goes to the other replica, none waits or fails.
    * Ended by SIGTERM: calls that it has begun finish. Those that reach it while it stops listening (measured: up to
      a dozen) fail with CANCELLED, which ``mesh.errors`` makes UNAVAILABLE too; very rarely one runs into its deadline.
    * Back again: takes calls within the reconnect backoff of at most half a second.
    * Hanging with its connections open: its share of the calls runs into their deadlines until the keepalive gives the
      connection up, after at most 13 s.

    Without any replica a call fails with UNAVAILABLE at once. gRPC's transparent retries would change none of this:
    with them as many calls failed.
    """
    channel = transport.channel(target, service, _OPTIONS)
    return channel if calls is None else calls.metered(channel, target)


def timeout_s(context: Any, most_s: float) -> float:
    """The timeout, seconds, of a call on behalf of ``context``'s caller: what its deadline leaves, at most ``most_s``.

    Python does not pass deadlines on by itself. Never below 1 ms, so that an expired call fails as DEADLINE_EXCEEDED.
    """
    left = context.time_remaining()
    return most_s if left is None else float(min(most_s, max(0.001, left - _ANSWER_RESERVE_S)))
