"""Settings of the Balance Service, read from ``BALANCE_*``."""

from dataclasses import dataclass

from mesh.metrics import LISTEN_HELP
from mesh.server import REFLECTION_HELP, REFLECTION_SETTING
from mesh.settings import setting


@dataclass(frozen=True)
class Settings:
    """What the Balance Service can be told."""

    database_url: str = setting("postgresql://user:password@host:port/database", secret=True)
    listen: str = setting("host:port to serve on", default="127.0.0.1:7052")
    metrics_listen: str = setting(LISTEN_HELP, default="")
    calls_max: int = setting("unary calls under way at once; more are refused", default=1024, minimum=1, maximum=10_000)
    pool_size: int = setting("SQL connections", default=6, minimum=2, maximum=64)
    hold_ttl_s: float = setting(
        "seconds until a hold lapses that is neither captured nor released", default=120.0, minimum=0.05, maximum=86_400
    )
    expiry_interval_s: float = setting(
        "seconds between two looks for holds that have lapsed", default=1.0, minimum=0.02, maximum=60
    )
    expiry_batch_max: int = setting("most holds ended by one transaction", default=500, minimum=1, maximum=1_000)
    grace_s: float = setting("seconds calls under way get when the process stops", default=5.0, minimum=0, maximum=60)
    reflection: bool = setting(REFLECTION_HELP, default=True, env=REFLECTION_SETTING)


@dataclass(frozen=True)
class MigrationSettings:
    """What ``migrate`` needs to be told."""

    database_url: str = setting(
        "postgresql://user:password@host:port/database, as the owner of its tables", secret=True
    )
    app_role: str = setting("role that the service serves as, which is given the rights of sql/grants.sql", default="")
    auditor_role: str = setting("role that may read every table", default="")
