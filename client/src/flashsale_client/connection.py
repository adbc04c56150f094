"""Where the services are, and channels to them."""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashsale_client.policy import Policy

#: One address, a gRPC target such as "dns:///purchase.internal:7053", or the addresses of all replicas.
Target = str | Sequence[str]

_OPTIONS: list[tuple[str, str | int]] = [
    # Largest answer: a page ends at 2 MB. And none that is compressed, for 1 MB can unpack to a thousand: one bit for
    # each algorithm, the first of which is none.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Agrees with what the services allow; a peer that answers no ping is given up after 13 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # A replica that comes back is found within half a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 1),
    # Names may come to mean other replicas; asked for again at most so often.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
]


@dataclass(frozen=True)
class Tls:
    """Who this client is, and whom it believes: PEM files, read when a client connects for the first time, and again
    when they have changed.

    The services know their callers by certificate and take nobody without one, so all three are needed. A service must
    show a certificate for its own name within the ``trust_domain``, wherever it runs: "purchase.flashsale".
    """

    authorities: Path
    certificate: Path
    key: Path
    trust_domain: str = "flashsale"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Tls | None":
        """What MESH_TLS_CA, MESH_TLS_CERTIFICATE, MESH_TLS_KEY and MESH_TLS_TRUST_DOMAIN say; None if none of the files
        is named. Raises ValueError if only some are: a name that is missing must not mean plaintext."""
        files = [environ.get(f"MESH_TLS_{name}", "") for name in ("CA", "CERTIFICATE", "KEY")]
        if not any(files):
            return None
        if not all(files):
            raise ValueError("MESH_TLS_CA, MESH_TLS_CERTIFICATE, MESH_TLS_KEY: set all three or none")
        authorities, certificate, key = map(Path, files)
        return cls(authorities, certificate, key, environ.get("MESH_TLS_TRUST_DOMAIN", "") or cls.trust_domain)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def target_of(target: Target) -> str:
    """gRPC's name for ``target``. Several addresses must be of one family and numeric, because gRPC resolves no names
    in lists: otherwise ValueError. For names there is ``dns:///``, which finds every address behind one."""
    if isinstance(target, str):
        return target
    if not target:
        raise ValueError("a target needs at least one address")
    if len(target) == 1:
        return target[0]
    try:
        families = {ipaddress.ip_address(_host(each)).version for each in target}
    except ValueError as error:
        raise ValueError("a list of replicas must be of host:port with numeric hosts; for names use dns:///") from error
    if len(families) > 1:
        raise ValueError("a list of replicas must be all IPv4 or all IPv6")
    return f"ipv{families.pop()}:{','.join(target)}"


def hosts_of(target: str) -> list[str]:
    """The hosts that gRPC's name for a target means."""
    for scheme in ("ipv4:", "ipv6:"):
        if target.startswith(scheme):
            return [_host(each) for each in target.removeprefix(scheme).split(",")]
    return [_host(target.removeprefix("dns:").rpartition("/")[2])]


def options_of(service: str, policy: Policy, tls: Tls | None) -> list[tuple[str, str | int]]:
    """The options of a channel to a service, named in full."""
    options = [*_OPTIONS, ("grpc.service_config", policy.service_config(service))]
    if tls is not None:
        kind = service.split(".")[1]
        options.append(("grpc.ssl_target_name_override", f"{kind}.{tls.trust_domain}"))
    return options


def require_private(target: str, *, plaintext: bool) -> None:
    """Raises ValueError for a target without TLS that is not on this machine, unless ``plaintext`` says so.

    Whoever can read the line can read who buys what, and whoever can write to it can buy.
    """
    if not plaintext and not all(_is_loopback(host) for host in hosts_of(target)):
        raise ValueError(f"{target} is not on this machine: give tls, or say plaintext=True")
