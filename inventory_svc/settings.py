"""Settings of the inventory service: INVENTORY_* environment variables."""

from dataclasses import dataclass

from mesh.metrics import LISTEN_HELP
from mesh.server import REFLECTION_HELP, REFLECTION_SETTING
from mesh.settings import setting

PREFIX = "INVENTORY_"


@dataclass(frozen=True)
class MigrationSettings:
    """What the migrate command needs."""

    database_url: str = setting(
        "postgresql://user:password@host:port/database, as the owner of its tables", secret=True
    )
    app_role: str = setting("role that the service serves as, which is given the rights of sql/grants.sql", default="")
    auditor_role: str = setting("role that may read every table", default="")


@dataclass(frozen=True)
class Settings:
    """Read once at start; units are in the names."""

    database_url: str = setting("postgresql://user:password@host:port/database", secret=True)
    redis_url: str = setting("redis://:password@host:port/0", secret=True)
    listen: str = setting("host:port to serve gRPC on", default="127.0.0.1:7051")
    metrics_listen: str = setting(LISTEN_HELP, default="")
    sql_connections: int = setting("SQL connections for calls", default=6, minimum=1, maximum=64)
    redis_connections: int = setting("most Redis connections", default=16, minimum=2, maximum=256)
    calls_max: int = setting("unary calls under way at once; more are refused", default=256, minimum=1, maximum=10_000)
    watchers_max: int = setting("stock streams at once; more are refused", default=64, minimum=1, maximum=10_000)
    watchdog_period_ms: int = setting("how often every gate is checked", default=500, minimum=20, maximum=60_000)
    moves_period_ms: int = setting(
        "how often moves that Redis missed are repeated", default=1_000, minimum=20, maximum=60_000
    )
    reaper_period_ms: int = setting(
        "how often grants without a row are looked for", default=3_000, minimum=20, maximum=60_000
    )
    timekeeper_period_ms: int = setting(
        "how often sales are looked at that may have to change by themselves; an opening or closing time that is known"
        " by then is met without waiting for it",
        default=500,
        minimum=20,
        maximum=60_000,
    )
    # Longer than any call lives: the INSERT of a call is given 8 s (reserving.INSERT_S_MAX).
    grant_age_max_ms: int = setting(
        "age, by Redis's clock, at which a grant without a row is given back",
        default=15_000,
        minimum=100,
        maximum=600_000,
    )
    waitlist_max: int = setting(
        "most requests in line for one sale; more are refused", default=1_000_000, minimum=0, maximum=10_000_000
    )
    promoter_period_ms: int = setting(
        "how often every line is looked at for units that nobody brought to it",
        default=1_000,
        minimum=20,
        maximum=60_000,
    )
    calibration_lease_ms: int = setting(
        "how long others leave a recalibration alone; a dead one's gate stays closed for so long",
        default=2_000,
        minimum=100,
        maximum=600_000,
    )
    drain_s: float = setting(
        "time that calls under way get when the process stops, seconds", default=5.0, minimum=0.0, maximum=60.0
    )
    reflection: bool = setting(REFLECTION_HELP, default=True, env=REFLECTION_SETTING)
