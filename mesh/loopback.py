"""Which addresses never leave this machine: the only ones where bytes may go in the clear."""

import ipaddress
from collections.abc import Iterator

from mesh.settings import SettingsError

#: Words that say where a plaintext listener or target would be allowed to be.
ALLOW_PLAINTEXT = "MESH_ALLOW_PLAINTEXT"


def is_loopback(host: str) -> bool:
    """Whether a host, as settings name it, is this machine's loopback interface. A name other than localhost is not,
    whatever it resolves to today."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_local(target: str) -> bool:
    """Whether every address of a gRPC target or of a listener stays on this machine.

    Understands ``host:port``, gRPC's lists (``ipv4:a:1,b:2``, ``ipv6:[::1]:1``), ``dns:///host:port`` and Unix sockets.
    What it does not understand is not local.
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return all(is_loopback(host) for host in _hosts(target))


def _hosts(target: str) -> Iterator[str]:
    for scheme in ("ipv4:", "ipv6:", "dns:"):
        if target.startswith(scheme):
            # scheme://resolver/host, where the resolver may be left out, or scheme:host.
            resolver, _, target = target.removeprefix(scheme).rpartition("/")
            resolver = resolver.removeprefix("//").removesuffix("/")
            target = f"{resolver},{target}" if resolver else target
            break
    for address in target.split(","):
        host, colon, _ = address.rpartition(":")
        # An IPv6 address without brackets and port ends in something like a port.
        yield address if not colon or ("]" in address and not address.rpartition("]")[2]) else host


def require_local(name: str, address: str, *, allowed: bool) -> None:
    """Raises SettingsError when ``address`` is beyond loopback, unless plaintext is ``allowed`` there. ``name`` says
    what the address is of."""
    if not allowed and not is_local(address):
        raise SettingsError(
            f"{name}: {address} is not on loopback, and without TLS everybody on the way could read and change what is"
            f" said: set the certificates (docs/security.md), or {ALLOW_PLAINTEXT}=yes"
        )
