"""A gateway process that checks tokens by the public keys of a file, before the real services: who gets in, and who not
any more once the keys have changed."""

import asyncio
import base64
import hmac
import http.client
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from stack.environment import for_service
from stack.folder import CHECKOUT
from stack.services import base_environment
from tests.contract.test_gateway_real import new_sale
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

ED, EC, RSA = (
    OKPKey.generate_key("Ed25519", auto_kid=True),
    ECKey.generate_key("P-256", auto_kid=True),
    RSAKey.generate_key(2048, auto_kid=True),
)
ALGORITHMS: dict[str | None, str] = {ED.kid: "EdDSA", EC.kid: "ES256", RSA.kid: "RS256"}
OPERATORS = "/v1/operator/parked"
# Of the older name of the algorithm, which is still the one in use.
pytestmark = pytest.mark.filterwarnings("ignore:EdDSA is deprecated")


def token(key: Key, user: str, **changes: Any) -> str:
    algorithm = ALGORITHMS[key.kid]
    claims = {"iss": "flashsale", "aud": "flashsale", "sub": user, "exp": int(time.time()) + 600} | changes
    return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm])


def forged(header: dict[str, Any], user: str, secret: bytes | None) -> str:
    claims = {"iss": "flashsale", "aud": "flashsale", "sub": user, "exp": int(time.time()) + 600}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    mac = b"" if secret is None else hmac.digest(secret, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


class Door:
    """The process, and requests to it."""

    def __init__(self, keys: Path, port: int) -> None:
        self._keys, self._port = keys, port

    def trust(self, *keys: Key) -> None:
        """The keys of the file from now on, which replace it at once."""
        draft = self._keys.with_suffix(".new")
        draft.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))
        draft.replace(self._keys)

    def ask(self, method: str, path: str, bearer: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and answer. Blocks."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=40)
        try:
            headers = {"authorization": f"Bearer {bearer}", "idempotency-key": "once"}
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    async def is_let_in(self, bearer: str) -> bool:
        """Whether the token is good."""
        status, _ = await asyncio.to_thread(self.ask, "GET", "/v1/purchases", bearer)
        assert status in (200, 401)
        return status == 200


@pytest.fixture
def door(mesh_stack: MeshStack, tmp_path: Path) -> Iterator[Door]:
    """It, trusting ED and RSA."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Door(tmp_path / "keys.json", free.getsockname()[1])
    made.trust(ED, RSA)
    told = base_environment() | for_service("gateway", mesh_stack.environment)
    del told["GATEWAY_JWT_SECRET"], told["GATEWAY_METRICS_LISTEN"]
    told |= {"GATEWAY_JWKS_FILE": str(made._keys), "GATEWAY_LISTEN": f"127.0.0.1:{made._port}", "GATEWAY_SOLE": "no"}
    with subprocess.Popen([sys.executable, "-m", "gateway", "serve"], cwd=CHECKOUT, env=told) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", made._port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield made
        finally:
            process.terminate()
            assert process.wait(20) == 0


async def test_keys_decide_who_gets_in_and_who_does_not_any_more(mesh_stack: MeshStack, door: Door) -> None:
    run = uuid.uuid4().hex[:8]
    alice, bob = f"{run}-alice", f"{run}-bob"
    sale = await new_sale(mesh_stack, [alice, bob])

    async def buys(key: Key, user: str) -> None:
        ask = (token(key, user), b'{"quantity":1}')
        status, bought = await asyncio.to_thread(door.ask, "POST", f"/v1/sales/{sale}/purchases", *ask)
        assert status == 202, bought
        path = f"/v1/purchases/{bought['purchase_id']}?wait=30"
        status, final = await asyncio.to_thread(door.ask, "GET", path, token(key, user))
        assert (status, final["state"]) == (200, "CONFIRMED")

    await buys(ED, alice)
    now, pem = int(time.time()), RSA.as_pem(private=False)
    answers = [
        await asyncio.to_thread(door.ask, "GET", "/v1/purchases", bearer)
        for bearer in (
            token(EC, alice),
            token(ED, alice, exp=now - 1),
            token(ED, alice, nbf=now + 60),
            token(ED, alice, aud="another"),
            token(ED, alice, iss="another"),
            forged({"alg": "none"}, alice, None),
            forged({"alg": "none", "kid": RSA.kid}, alice, None),
            forged({"alg": "HS256", "kid": RSA.kid}, alice, pem),
            forged({"alg": "HS256"}, alice, mesh_stack.jwt_secret.encode()),
        )
    ]
    assert {status for status, _ in answers} == {401}
    assert {answer["reason"] for _, answer in answers} == {"UNAUTHENTICATED"}

    for claims, status in (({}, 403), ({"role": "operator"}, 200)):
        assert (await asyncio.to_thread(door.ask, "GET", OPERATORS, token(ED, "olga", **claims)))[0] == status

    # One is withdrawn, which has just been good and is remembered; another comes in its place.
    old = token(ED, alice)
    assert await door.is_let_in(old)
    door.trust(EC, RSA)
    await eventually(lambda: door.is_let_in(token(EC, bob)))
    assert not await door.is_let_in(old)
    assert await door.is_let_in(token(RSA, bob))
    await buys(EC, bob)
