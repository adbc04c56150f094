"""Settings of the settlement worker, read from SETTLEMENT_ variables; it shares the database and the gRPC targets with
the serving process."""

from dataclasses import dataclass

from mesh.metrics import LISTEN_HELP
from mesh.settings import setting

PREFIX = "SETTLEMENT_"


@dataclass(frozen=True)
class SettlementSettings:
    """What a settlement worker needs to know. ``rate_per_s`` and ``burst`` must be the same for all workers."""

    database_url: str = setting("postgresql:// URL of the purchase database", env="PURCHASE_DATABASE_URL", secret=True)
    amqp_url: str = setting("amqp:// URL of RabbitMQ, as a user that may declare the queues", secret=True)
    inventory_target: str = setting("gRPC target of the Inventory Service", env="PURCHASE_INVENTORY_TARGET")
    balance_target: str = setting("gRPC target of the Balance Service", env="PURCHASE_BALANCE_TARGET")
    listen: str = setting("host:port to serve health on", default="127.0.0.1:7054")
    metrics_listen: str = setting(LISTEN_HELP, default="")
    rate_per_s: int = setting(
        "purchases/s sent to the Balance Service over all workers", default=500, minimum=1, maximum=100_000
    )
    burst: int = setting("most purchases above the rate in any second", default=100, minimum=10, maximum=10_000)
    lanes: int = setting("batches settled at once", default=4, minimum=1, maximum=16)
    attempts_max: int = setting("claims before a purchase is parked", default=12, minimum=1, maximum=1_000)
    call_timeout_ms: int = setting("longest call to another service", default=5_000, minimum=100, maximum=30_000)
    pool_size: int = setting("SQL connections", default=6, minimum=2, maximum=64)
    sweep_interval_ms: int = setting("pause between sweeps", default=1_000, minimum=50, maximum=60_000)
    unqueued_after_ms: int = setting(
        "age at which a purchase that was never queued is queued by the sweeper", default=2_000, minimum=100
    )
    stale_after_ms: int = setting(
        "time without a sign of life after which a purchase may count as lost by the broker",
        default=15_000,
        minimum=1_000,
    )
    abandoned_after_ms: int = setting(
        "age at which a reservation without a purchase is given back; longer than any buyer's call lives",
        default=20_000,
        minimum=1_000,
    )
    grace_s: float = setting("time that batches under way get at the end, seconds", default=10.0, minimum=0, maximum=60)
