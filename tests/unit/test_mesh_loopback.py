"""What may be said in the clear: only what never leaves this machine."""

import pytest

from mesh.loopback import is_local, require_local
from mesh.settings import SettingsError


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:7051",
        "127.9.9.9:1",
        "localhost:0",
        "[::1]:7051",
        "ipv4:127.0.0.1:7051,127.0.0.1:7151",
        "ipv6:[::1]:7051",
        "dns:///localhost:7051",
        "dns://127.0.0.1/localhost:7051",
        "unix:/run/flashsale.sock",
    ],
)
def test_loopback_in_every_form_is_local(target: str) -> None:
    assert is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        "0.0.0.0:7051",
        "[::]:7051",
        "10.0.0.1:7051",
        "ipv4:127.0.0.1:7051,10.0.0.1:7051",
        "dns:///inventory.example.org:7051",
        # Who answers for the name may answer anything.
        "dns://10.0.0.1/localhost:7051",
        # The resolver is on this machine, what it is asked for is not.
        "dns://127.0.0.1/inventory.example.org:7051",
        "localhost.example.org:7051",
        "127.0.0.1.example.org:7051",
        "xds:///127.0.0.1:7051",
        ":7051",
        "",
    ],
)
def test_everything_else_is_not(target: str) -> None:
    assert not is_local(target)


def test_what_is_not_local_needs_to_be_allowed_by_name() -> None:
    require_local("listen", "127.0.0.1:1", allowed=False)
    require_local("listen", "0.0.0.0:1", allowed=True)
    with pytest.raises(SettingsError, match=r"listen: 0\.0\.0\.0:1 .*MESH_ALLOW_PLAINTEXT=yes"):
        require_local("listen", "0.0.0.0:1", allowed=False)
