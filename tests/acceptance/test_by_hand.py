"""What `make token`, `make account` and `make new-sale` print is enough to buy a share."""

import asyncio
import json
import re
import urllib.request
import uuid

from bench.hand import run
from tests.support.servers import MeshStack


def post(url: str, token: str) -> tuple[int, dict[str, str]]:
    headers = {
        "Authorization": f"Bearer {token}",
        "Idempotency-Key": uuid.uuid4().hex,
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(url, b'{"quantity": 1}', headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, json.load(answer)


def get(url: str, token: str) -> dict[str, object]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=15) as answer:
        found: dict[str, object] = json.load(answer)
        return found


async def test_a_person_can_buy_a_share_by_hand(mesh_stack: MeshStack) -> None:
    user = f"alice-{uuid.uuid4().hex[:6]}"
    told = [
        await run(arguments, lambda: mesh_stack.environment)
        for arguments in (
            ["account", user, "60.50"],
            ["account", user, "39.50"],
            ["token", user],
            ["new-sale", "3", "25.00"],
        )
    ]
    assert told[:2] == [f"{user} has 60.50 EUR\n", f"{user} has 100.00 EUR\n"]
    token = told[2].strip()
    assert told[2].count("\n") == 1
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token)
    url = re.search(r"POST (\S+)", told[3])
    assert url
    status, bought = await asyncio.to_thread(post, url[1], token)
    assert status == 202
    where = f"{mesh_stack.gateway_url}/v1/purchases/{bought['purchase_id']}?wait=10"
    assert (await asyncio.to_thread(get, where, token))["state"] == "CONFIRMED"
    assert await run(["account", user, "0.01"], lambda: mesh_stack.environment) == f"{user} has 75.01 EUR\n"
    for path in re.findall(r'curl -s "?(\S+?)"?[ \n]', told[3]):
        if "PURCHASE_ID" not in path:
            assert await asyncio.to_thread(get, path, token)
