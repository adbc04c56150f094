"""Settings of the serving process and of migration, read from PURCHASE_ variables."""

from dataclasses import dataclass

from mesh.metrics import LISTEN_HELP
from mesh.server import REFLECTION_HELP, REFLECTION_SETTING
from mesh.settings import setting

PREFIX = "PURCHASE_"


@dataclass(frozen=True)
class MigrateSettings:
    """What migration needs to know."""

    database_url: str = setting("postgresql:// URL of the purchase database, as the owner of its tables", secret=True)
    app_role: str = setting("role that the service serves as, which is given the rights of sql/grants.sql", default="")
    auditor_role: str = setting("role that may read every table", default="")


@dataclass(frozen=True)
class ServeSettings:
    """What the serving process needs to know."""

    database_url: str = setting("postgresql:// URL of the purchase database", secret=True)
    amqp_url: str = setting("amqp:// URL of RabbitMQ", secret=True)
    inventory_target: str = setting("gRPC target of the Inventory Service")
    balance_target: str = setting("gRPC target of the Balance Service, for receipts")
    listen: str = setting("host:port to serve on", default="127.0.0.1:7053")
    metrics_listen: str = setting(LISTEN_HELP, default="")
    calls_max: int = setting(
        "unary calls under way at once; more are refused", default=4096, minimum=1, maximum=100_000
    )
    pool_size: int = setting("SQL connections for buyers", default=8, minimum=1, maximum=64)
    #: Reading has connections of its own, so that watchers and lists never hold up a buy.
    read_pool_size: int = setting("SQL connections for reading and for queue notes", default=4, minimum=1, maximum=64)
    batches_max: int = setting("batches sent to the Inventory Service at once", default=4, minimum=1, maximum=64)
    waiting_max: int = setting("most purchases that wait for a batch", default=10_000, minimum=1, maximum=1_000_000)
    rate_max_per_s: float = setting("most purchases/s taken on by this process; 0: unbounded", default=0.0, minimum=0.0)
    buy_timeout_ms: int = setting("longest time for one batch of buys", default=3_000, minimum=10, maximum=10_000)
    watches_max: int = setting("most WatchPurchase streams", default=5_000, minimum=1, maximum=100_000)
    watch_interval_ms: int = setting("pause between looks at watched purchases", default=100, minimum=10, maximum=5_000)
    unqueued_max: int = setting("most purchases kept for publishing", default=50_000, minimum=1, maximum=1_000_000)
    waitlist_rate_per_s: float = setting(
        "purchases/s at which those in line are told that they will be served", default=500.0, minimum=0.001
    )
    refund_window_s: int = setting(
        "time after its confirmation within which a purchase may be refunded, seconds",
        default=14 * 24 * 3600,
        minimum=0,
        maximum=10 * 366 * 24 * 3600,
    )
    grace_s: float = setting("time that calls under way get at the end, seconds", default=5.0, minimum=0, maximum=60)
    reflection: bool = setting(REFLECTION_HELP, default=True, env=REFLECTION_SETTING)
