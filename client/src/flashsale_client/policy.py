"""What this client does by itself: how long it waits, and what it sends again.

Two rules, because the services mean two things. UNAVAILABLE: whoever was asked is away, so the call goes to another
replica at once, by gRPC's own retries (gRFC A6), which stop when more fails than succeeds. RESOURCE_EXHAUSTED: the
service is busy and says for how long, so exactly that is waited for; a call that was told nothing is not sent again.
Nothing else is repeated. Both are safe: every call of the contract may be repeated, a buy by its request id.
"""

import json
from dataclasses import dataclass
from typing import Any

#: Below it a pause can come out at 0 ms, and then gRPC never makes the next try: the call hangs, past its deadline too
#: (seen with grpcio 1.82.3; a timer without delay has no handle, and its retry filter takes that for a cancelled one).
_BACKOFF_S_MIN = 0.01


@dataclass(frozen=True)
class Policy:
    """Deadlines and repetitions. Times are seconds and include every repetition."""

    #: Deadline of a call for which none is given.
    timeout_s: float = 5.0
    #: The same of a buy.
    buy_timeout_s: float = 10.0
    #: How long a watch goes on for which no time is given.
    watch_timeout_s: float = 120.0
    #: Tries of a call that is answered UNAVAILABLE, the first included; 1 to 5 (gRPC's limit).
    attempts_max: int = 4
    #: Pause before the second try, more or less, as gRPC has it; each further one is twice as long, up to a second.
    backoff_s: float = 0.05
    #: Failures that a channel forgives before it ceases to retry, until ten successes for each have made up for it.
    failures_max: int = 500
    #: How often a call, or an item of a batch, is sent again that was told to come again.
    repetitions_max: int = 5
    #: Purchases of one batch, 1 to 1,000, and batches under way at once.
    batch_max: int = 500
    batches_at_once: int = 2
    #: Purchases that wait for a batch; more are refused at once with Overloaded.
    queue_max: int = 10_000

    def __post_init__(self) -> None:
        bounds = {
            "attempts_max": (1, 5),
            "failures_max": (1, 500),
            "repetitions_max": (0, 100),
            "batch_max": (1, 1_000),
            "batches_at_once": (1, 64),
            "queue_max": (1, 1_000_000),
            "timeout_s": (0.001, 3_600.0),
            "buy_timeout_s": (0.001, 3_600.0),
            "watch_timeout_s": (0.001, 86_400.0),
            "backoff_s": (_BACKOFF_S_MIN, 1.0),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be {low} to {high}")

    def service_config(self, service: str) -> str:
        """The gRPC service config (JSON) of a channel to one service, named in full."""
        retry = {
            "maxAttempts": self.attempts_max,
            "initialBackoff": f"{self.backoff_s:.3f}s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        every: dict[str, Any] = {"name": [{"service": service}]}
        if self.attempts_max > 1:
            every["retryPolicy"] = retry
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            # A replica that is about to end says so, and is given no more calls.
            "healthCheckConfig": {"serviceName": service},
            "methodConfig": [every],
            # gRPC retries while more than half of the tokens are left; each failure takes one.
            "retryThrottling": {"maxTokens": 2 * self.failures_max, "tokenRatio": 0.1},
        }
        return json.dumps(config)
