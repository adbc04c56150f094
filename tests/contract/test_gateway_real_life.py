"""A sale's life over HTTP on the real services: operators, refunds, receipts, statements, the overview of it all."""

import asyncio
import json
import uuid
from typing import Any

from gateway.local_tokens import issue
from tests.contract.test_gateway_real import PRICE, SHARES, Client, new_sale
from tests.support.servers import MeshStack


class Operator(Client):
    """Sends as an operator."""

    def __init__(self, stack: MeshStack) -> None:
        super().__init__(stack)
        self._headers = {"authorization": f"Bearer {issue(stack.jwt_secret, 'olga', operator=True)}"}

    async def operate(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        return await asyncio.to_thread(self._send, method, f"/v1/operator/{path}", self._headers, body)


async def _final(client: Client, purchase_id: str, user: str) -> dict[str, Any]:
    status, value = await client.send("GET", f"/v1/purchases/{purchase_id}?wait=30", user)
    assert status == 200
    return dict(value)


async def test_a_sale_is_paused_opened_raised_and_closed_over_http_in_the_operator_s_name(
    mesh_stack: MeshStack,
) -> None:
    operator, user = Operator(mesh_stack), f"user-{uuid.uuid4().hex[:8]}"
    sale = await new_sale(mesh_stack, [user])
    status, shown = await operator.operate("POST", f"sales/{sale}/pause")
    assert (status, shown["state"], shown["state_actor"]) == (200, "PAUSED", "olga")
    status, refusal = await operator.buy(sale, user)
    assert (status, refusal["reason"]) == (409, "SALE_NOT_OPEN")
    assert (await operator.operate("POST", f"sales/{sale}/open"))[1]["state"] == "OPEN"
    status, shown = await operator.operate("POST", f"sales/{sale}/total", f'{{"total":{SHARES + 5}}}'.encode())
    assert (status, shown["total"]) == (200, SHARES + 5)
    status, refusal = await operator.operate("POST", f"sales/{sale}/total", b'{"total":1}')
    assert (status, refusal["reason"]) == (400, "INVALID_ARGUMENT")
    status, bought = await operator.buy(sale, user)
    assert status == 202
    assert (await _final(operator, bought["purchase_id"], user))["state"] == "CONFIRMED"
    assert (await operator.operate("POST", f"sales/{sale}/close"))[1]["state"] == "CLOSED"
    status, refusal = await operator.operate("POST", f"sales/{sale}/open")
    assert (status, refusal["reason"]) == (409, "SALE_STATE_CONFLICT")
    changes = (await operator.operate("GET", f"sales/{sale}/changes"))[1]["changes"]
    assert [each["to_state"] for each in changes if each["actor"] == "olga"] == ["PAUSED", "OPEN", "OPEN", "CLOSED"]
    assert sale in {each["sale_id"] for each in (await operator.send("GET", "/v1/sales"))[1]["sales"]}
    statement = (await operator.operate("GET", f"sales/{sale}/statement"))[1]
    assert (statement["final"], statement["total"], statement["sold_units"]) == (True, SHARES + 5, 1)
    assert statement["captured"] == {"amount_minor": PRICE, "currency_code": "EUR"}


async def test_a_sale_for_certain_users_is_scheduled_and_its_list_kept_over_http(mesh_stack: MeshStack) -> None:
    operator, run = Operator(mesh_stack), uuid.uuid4().hex[:8]
    member, other = f"{run}-member", f"{run}-other"
    sale = await new_sale(mesh_stack, [member, other], opened=False, eligible_users_only=True)
    times = {"open_time": "2099-01-01T00:00:00Z", "close_time": "2099-01-02T00:00:00Z"}
    status, shown = await operator.operate("POST", f"sales/{sale}/schedule", json.dumps(times).encode())
    assert (status, shown["state"], {name: shown[name] for name in times}) == (200, "SCHEDULED", times)
    assert (await operator.buy(sale, member))[1]["reason"] == "NOT_ELIGIBLE"
    users = json.dumps({"user_ids": [member, f"{run}-another"]}).encode()
    added = [await operator.operate("POST", f"sales/{sale}/eligible-users", users) for _ in range(2)]
    assert added == [(200, {"added": 2, "eligible": 2}), (200, {"added": 0, "eligible": 2})]
    assert (await operator.buy(sale, member))[1]["reason"] == "SALE_NOT_OPEN"
    backwards = b'{"open_time":"2099-01-02T00:00:00Z","close_time":"2099-01-01T00:00:00Z"}'
    status, refusal = await operator.operate("POST", f"sales/{sale}/schedule", backwards)
    assert (status, refusal["violations"][0]["field"]) == (400, "close_time")
    # A time that has passed opens it at once.
    times["open_time"] = "2020-01-01T00:00:00Z"
    status, shown = await operator.operate("POST", f"sales/{sale}/schedule", json.dumps(times).encode())
    assert (status, shown["state"], shown["state_actor"]) == (200, "OPEN", "schedule")
    status, bought = await operator.buy(sale, member)
    assert status == 202
    assert (await _final(operator, bought["purchase_id"], member))["state"] == "CONFIRMED"
    status, refusal = await operator.buy(sale, other)
    assert (status, refusal["reason"]) == (403, "NOT_ELIGIBLE")
    changes = (await operator.operate("GET", f"sales/{sale}/changes"))[1]["changes"]
    assert ("olga", "SCHEDULED") in {(each["actor"], each["to_state"]) for each in changes}


async def test_a_purchase_is_refunded_once_its_share_is_on_sale_again_and_its_receipt_tells_all_of_it(
    mesh_stack: MeshStack,
) -> None:
    client, run = Client(mesh_stack), uuid.uuid4().hex[:8]
    winner, other = f"{run}-winner", f"{run}-other"
    sale = await new_sale(mesh_stack, [winner, other])
    path = f"/v1/purchases/{(await client.buy(sale, winner))[1]['purchase_id']}"
    assert (await client.send("GET", f"{path}?wait=30", winner))[1]["state"] == "CONFIRMED"
    assert (await client.send("POST", f"{path}/refund", other))[0] == 404
    assert (await client.send("GET", f"{path}/receipt", other))[0] == 404
    status, value = await client.send("POST", f"{path}/refund", winner)
    assert (status, value["state"]) in ((202, "REFUNDING"), (200, "REFUNDED"))
    assert (await client.send("GET", f"{path}?wait=30", winner))[1]["state"] == "REFUNDED"
    assert (await client.send("POST", f"{path}/refund", winner))[0] == 200
    money = (await client.send("GET", "/v1/balance", winner))[1]
    assert (money["balance_minor"], money["held_minor"]) == (4 * PRICE, 0)
    async with asyncio.timeout(10):
        while (await client.send("GET", f"/v1/sales/{sale}/stock"))[1]["available"] != SHARES:
            await asyncio.sleep(0.02)
    receipt = (await client.send("GET", f"{path}/receipt", winner))[1]
    assert (receipt["reservation"]["state"], receipt["hold"]["state"]) == ("RELEASED", "REVERSED")
    assert receipt["hold"]["amount"] == {"amount_minor": PRICE, "currency_code": "EUR"}
    states = [step["state"] for step in receipt["steps"]]
    assert (states[0], states[-1]) == ("RESERVED", "REFUNDED")
    times = [step["time"] for step in receipt["steps"]]
    assert times == sorted(times)
    assert receipt["words"]
    [own] = (await client.send("GET", f"/v1/purchases?sale_id={sale}", winner))[1]["purchases"]
    assert (own["purchase_id"], own["state"]) == (receipt["purchase"]["purchase_id"], "REFUNDED")


async def test_the_overview_of_a_sale_that_has_been_settled_says_that_all_promises_are_kept(
    mesh_stack: MeshStack,
) -> None:
    operator, run = Operator(mesh_stack), uuid.uuid4().hex[:8]
    users = [f"{run}-{number}" for number in range(5)]
    sale = await new_sale(mesh_stack, users)
    for user in users:
        bought = (await operator.buy(sale, user))[1]
        assert (await _final(operator, bought["purchase_id"], user))["state"] == "CONFIRMED"

    async def seen() -> dict[str, Any]:
        status, value = await operator.operate("GET", "overview")
        assert status == 200
        return dict(value)

    def of_sale(value: dict[str, Any]) -> dict[str, Any]:
        return next(dict(each) for each in value["sales"] if each["sale_id"] == sale)

    async with asyncio.timeout(20):
        while (of_sale(await seen())["settlement"] or {}).get("settled") != 5:
            await asyncio.sleep(0.1)
        # Every promise has been judged of at least one sale.
        while any(line["ok"] is None for line in (await seen())["audit"]["lines"]):
            await asyncio.sleep(0.1)
    value = await seen()
    shown = of_sale(value)
    assert (shown["stock"]["sold"], shown["settlement"]["unsettled"], shown["settlement"]["eta_s"]) == (5, 0, 0)
    assert shown["counts"] == [{"state": "CONFIRMED", "reason": None, "purchases": 5, "units": 5}]
    assert (value["audit"]["verdict"], value["away"]) == ("kept", []), value["audit"]
    assert value["answers"]["accepted"]["total"] >= 5
    assert value["queue"]["messages"] is not None
    assert (await operator.operate("GET", "dead-letters"))[0] == 200
    assert (await operator.operate("GET", "parked"))[0] == 200
    assert (await operator.send("GET", "/v1/operator/overview", users[0]))[0] == 403


async def test_with_all_shares_sold_the_line_is_served_in_its_order_without_anybody_asking_again(
    mesh_stack: MeshStack,
) -> None:
    client, run = Client(mesh_stack), uuid.uuid4().hex[:8]
    winners = [f"{run}-winner-{number}" for number in range(SHARES)]
    waiters = [f"{run}-waiter-{number}" for number in range(3)]
    sale = await new_sale(mesh_stack, winners + waiters)
    bought = {user: (await client.buy(sale, user))[1]["purchase_id"] for user in winners}
    for user in winners:
        assert (await _final(client, bought[user], user))["state"] == "CONFIRMED"
    places = []
    for user in waiters:
        status, value = await client.buy(sale, user, waitlist=True)
        assert (status, value["state"]) == (202, "WAITLISTED")
        places.append(value["waitlist_position"])
        bought[user] = value["purchase_id"]
    assert places == [1, 2, 3]
    status, value = await client.buy(sale, f"{run}-late")
    assert (status, value["reason"]) == (409, "SOLD_OUT")
    status, value = await client.send("DELETE", f"/v1/purchases/{bought[waiters[1]]}", waiters[1])
    assert (status, value["state"]) == (200, "CANCELLED")
    async with asyncio.timeout(10):
        while (await client.send("GET", f"/v1/purchases/{bought[waiters[2]]}", waiters[2]))[1][
            "waitlist_position"
        ] != 2:
            await asyncio.sleep(0.02)
    assert (await client.send("POST", f"/v1/purchases/{bought[winners[0]]}/refund", winners[0]))[0] in (200, 202)
    # The first in line is served, and told so by a poll that it has left open; the third still waits.
    status, value = await client.send("GET", f"/v1/purchases/{bought[waiters[0]]}?wait=30", waiters[0])
    assert (status, value["state"] in ("RESERVED", "SETTLING", "CONFIRMED")) == (200, True)
    assert (await _final(client, bought[waiters[0]], waiters[0]))["state"] == "CONFIRMED"
    value = (await client.send("GET", f"/v1/purchases/{bought[waiters[2]]}", waiters[2]))[1]
    assert (value["state"], value["waitlist_position"]) == ("WAITLISTED", 1)
    assert (await Operator(mesh_stack).operate("POST", f"sales/{sale}/close"))[0] == 200
    value = await _final(client, bought[waiters[2]], waiters[2])
    assert (value["state"], value["reason"]) == ("FAILED", "SALE_CLOSED")
    statement = (await Operator(mesh_stack).operate("GET", f"sales/{sale}/statement"))[1]
    assert statement["sold_units"] == SHARES
