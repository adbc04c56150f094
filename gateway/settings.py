"""Settings of the gateway, read from GATEWAY_* variables."""

from dataclasses import dataclass

from gateway.cross_origin import origins_of
from gateway.key_source import why_not_url
from gateway.tokens import AUDIENCE, ISSUER
from mesh.loopback import is_loopback
from mesh.metrics import LISTEN_HELP
from mesh.settings import SettingsError, setting

#: Least length of an HMAC secret: the output size of SHA-256 (RFC 7518, section 3.2).
_SECRET_BYTES_MIN = 32


@dataclass(frozen=True)
class Settings:
    """Every bound of the gateway; all are per process."""

    purchase_target: str = setting("gRPC target of the Purchase Service")
    inventory_target: str = setting("gRPC target of the Inventory Service")
    balance_target: str = setting("gRPC target of the Balance Service")
    listen: str = setting("host:port to serve HTTP on", default="127.0.0.1:7080")
    jwt_secret: str = setting("secret of HS256 tokens, at least 32 bytes; for local use", default="", secret=True)
    jwks_file: str = setting("JSON Web Key Set with public keys (EdDSA, ES256, RS256), looked at again", default="")
    jwks_url: str = setting("https URL of such a set, read again", default="")
    jwks_refresh_s: float = setting("time between two readings of the URL", default=300.0, minimum=1.0, maximum=86_400)
    jwks_age_max_s: float = setting(
        "how long keys are believed without a reading that succeeds", default=86_400.0, minimum=1.0, maximum=2_592_000
    )
    jwt_issuer: str = setting("iss that a token must have", default=ISSUER)
    jwt_audience: str = setting("aud that a token must have, alone or among others", default=AUDIENCE)
    shared_secret_anywhere: bool = setting("allow jwt_secret also when listening beyond loopback", default=False)
    tls_certificate: str = setting("PEM file of the certificate shown to buyers; empty: no HTTPS", default="")
    tls_key: str = setting("PEM file of its private key, PKCS #8", default="")
    tokens_cache_max: int = setting("verified tokens remembered", default=65_536, minimum=1, maximum=1_000_000)

    batch_max: int = setting("most purchases of one call", default=250, minimum=1, maximum=1000)
    in_flight_max: int = setting("most calls to the Purchase Service at once", default=3, minimum=1, maximum=64)
    queue_min: int = setting(
        "requests that may always be on their way in a rush", default=500, minimum=1, maximum=100_000
    )
    queue_max: int = setting("most requests on their way, however fast they are served", default=8000, minimum=1)
    queue_wait_ms: int = setting("longest wait that is promised to a request", default=500, minimum=10, maximum=5000)
    rush_ms: int = setting("an overload that lasts longer is met by a short queue", default=2000, minimum=100)
    standing_wait_ms: int = setting(
        "wait that a lasting overload begins to be met with, at least", default=40, minimum=1, maximum=5000
    )
    rate_initial_per_s: float = setting("purchases/s assumed before any was measured", default=8000.0, minimum=1.0)
    purchase_timeout_ms: int = setting("deadline of a call that buys", default=2000, minimum=10, maximum=30_000)
    read_timeout_ms: int = setting("deadline of a call that reads", default=2000, minimum=10, maximum=30_000)

    user_rate_per_s: float = setting("purchases/s of one user", default=5.0, minimum=0.01)
    user_burst: int = setting("purchases a user may send at once", default=10, minimum=1)
    users_max: int = setting("users whose rate is remembered", default=100_000, minimum=1)

    sole: bool = setting("no other gateway sells the same sales, so a refusal needs no second look", default=False)
    sales_max: int = setting("sales followed at once", default=64, minimum=1, maximum=10_000)
    unasked_s: float = setting(
        "a sale that nobody has asked for in this time is followed no more, s", default=60.0, minimum=1, maximum=86_400
    )
    fingerprints_max: int = setting("fingerprints kept of one sale", default=1_000_000, minimum=1)
    reads_max: int = setting("reads under way at once", default=256, minimum=1)
    waits_max: int = setting("long polls at once", default=2000, minimum=1)
    streams_max: int = setting("stock streams at once", default=6000, minimum=1)
    pushes_per_s: float = setting("events/s sent to all stock streams together", default=2000.0, minimum=1.0)
    stream_s: float = setting("longest life of a stock stream", default=60.0, minimum=0.1, maximum=3600.0)

    connections_max: int = setting("connections served at once; further ones wait", default=16_384, minimum=1)
    backlog: int = setting("connections the kernel may hold for us", default=8192, minimum=128)
    cors_origins: str = setting("origins of other sites whose pages may use this, with commas", default="")
    metrics_listen: str = setting(LISTEN_HELP, default="")
    notice_s: float = setting(
        "time between saying that it will end (/healthz, connection: close) and taking no more connections",
        default=0.0,
        minimum=0.0,
        maximum=600.0,
    )
    grace_s: float = setting("time for requests under way when the process stops", default=5.0, minimum=0.0)

    def __post_init__(self) -> None:
        """Checks the rules that span fields."""
        if len(list(filter(None, (self.jwt_secret, self.jwks_file, self.jwks_url)))) != 1:
            raise SettingsError("GATEWAY_JWT_SECRET, GATEWAY_JWKS_FILE, GATEWAY_JWKS_URL: exactly one must be set")
        if self.jwt_secret and len(self.jwt_secret.encode()) < _SECRET_BYTES_MIN:
            raise SettingsError(f"GATEWAY_JWT_SECRET: shorter than {_SECRET_BYTES_MIN} bytes")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise SettingsError("GATEWAY_TLS_CERTIFICATE, GATEWAY_TLS_KEY: set both or none")
        origins_of(self.cors_origins)
        if self.jwt_secret and not self.shared_secret_anywhere and not is_loopback(self.address[0]):
            raise SettingsError(
                "GATEWAY_JWT_SECRET: whoever can check such tokens can make them, so it is for loopback only:"
                " use keys, or set GATEWAY_SHARED_SECRET_ANYWHERE"
            )
        if self.jwks_url and (why_not := why_not_url(self.jwks_url)):
            raise SettingsError(f"GATEWAY_JWKS_URL: {why_not}")
        if self.jwks_url and self.jwks_age_max_s < self.jwks_refresh_s:
            raise SettingsError("GATEWAY_JWKS_AGE_MAX_S: below GATEWAY_JWKS_REFRESH_S: keys would grow too old unseen")
        if self.queue_min > self.queue_max:
            raise SettingsError(f"GATEWAY_QUEUE_MIN: {self.queue_min} is above GATEWAY_QUEUE_MAX ({self.queue_max})")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on. Raises SettingsError for anything but host:port."""
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
            raise SettingsError(f"GATEWAY_LISTEN: {self.listen!r} is not host:port")
        return "127.0.0.1" if host == "localhost" else host.strip("[]"), int(port)
