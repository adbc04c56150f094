"""Headers by convention: entity tags, what is left of a user's rate, and pages of other sites."""

import asyncio
import re

import pytest
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from gateway.local_tokens import issue
from gateway.settings import Settings
from mesh.errors import DomainError
from mesh.settings import SettingsError
from tests.contract.gateway_harness import OTHER_SALE, SALE, SECRET, Harness, Reply, harness, reading

SHOP = "https://shop.example"


def rate_of(reply: Reply) -> tuple[int, int, int]:
    """Limit, remaining and reset."""
    limit, remaining, reset = (int(reply.headers[f"ratelimit-{name}"]) for name in ("limit", "remaining", "reset"))
    return limit, remaining, reset


async def test_an_answer_tells_what_is_left_of_a_users_rate() -> None:
    async with harness(user_burst=3, user_rate_per_s=0.5) as h:
        replies = [await h.buy(f"key {number}") for number in range(4)]
        assert [reply.status for reply in replies] == [202, 202, 202, 429]
        assert [rate_of(reply) for reply in replies] == [(3, 2, 2), (3, 1, 4), (3, 0, 6), (3, 0, 6)]
        assert replies[-1].json["reason"] == "USER_RATE_LIMITED"
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 2
        assert rate_of(await h.buy("key", user="another")) == (3, 2, 2)


async def test_a_refusal_that_cost_a_turn_tells_so_and_a_read_costs_none() -> None:
    async with harness() as h:
        h.purchases.outcome = purchase.CreatePurchaseOutcome(reason=ErrorReason.ERROR_REASON_USER_LIMIT_REACHED)
        refused = await h.buy("key")
        assert (refused.status, rate_of(refused)) == (409, (10, 9, 1))
        assert "ratelimit-limit" not in (await h.get("/v1/balance", "rich")).headers


async def test_a_turn_that_came_to_nothing_is_told_of_whatever_the_reason() -> None:
    async with harness(user_burst=20, user_rate_per_s=0.01) as h:
        bearer = {"authorization": f"Bearer {issue(SECRET, 'rich')}"}
        unknown = f"/v1/purchases/{OTHER_SALE}"
        refused = [
            await h.buy("key", body=b'{"quantity":0}'),
            await h.request("DELETE", unknown, bearer),
            await h.request("POST", f"{unknown}/refund", bearer),
            await h.request("DELETE", "/v1/purchases/none", bearer),
        ]
        h.purchases.failure = DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE)
        refused.append(await h.buy("key"))
        assert [reply.status for reply in refused] == [400, 404, 404, 400, 503]
        assert [rate_of(reply)[1] for reply in refused] == [19, 18, 17, 16, 15]
        # Who has no token has no rate.
        assert "ratelimit-limit" not in (await h.request("DELETE", unknown)).headers


async def test_of_many_buyers_each_is_told_of_their_own_rate() -> None:
    async with harness(user_burst=100, user_rate_per_s=0.01) as h:
        for _ in range(30):
            await h.buy("key", user="busy")
        h.purchases.open.clear()
        waiting = [asyncio.ensure_future(h.buy("key", user=user)) for user in ("busy", "quiet", "busy")]
        await asyncio.sleep(0.1)
        h.purchases.open.set()
        left = [rate_of(await each)[1] for each in waiting]
        assert sorted(left) == [68, 69, 99]
        assert left[1] == 99


@pytest.mark.parametrize("path", ["/v1/sales", f"/v1/sales/{SALE}", f"/v1/sales/{SALE}/stock", "/openapi.json", "/"])
async def test_what_a_client_has_already_is_not_sent_again(path: str) -> None:
    async with harness() as h:
        await h.inventories.push(reading(5, reset=True))
        await h.followed()
        first = await h.get(path)
        etag = first.headers["etag"]
        assert re.fullmatch(r'"[0-9a-z-]+"', etag)
        assert first.headers["cache-control"] == "no-cache"
        for told in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await h.request("GET", path, {"if-none-match": told})
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        for told in ('"other"', "", etag.strip('"')):
            assert (await h.request("GET", path, {"if-none-match": told})).body == first.body


async def test_a_changed_stock_has_another_tag() -> None:
    async with harness() as h:
        await h.inventories.push(reading(5, reset=True))
        await h.followed()
        before = await h.get(f"/v1/sales/{SALE}/stock")
        await h.inventories.push(reading(4))
        await h.stock_is(4)
        after = await h.request("GET", f"/v1/sales/{SALE}/stock", {"if-none-match": before.headers["etag"]})
        assert (after.status, after.json["available"]) == (200, 4)


async def test_what_is_a_users_own_is_never_kept() -> None:
    async with harness() as h:
        for path in ("/v1/balance", "/v1/purchases"):
            headers = (await h.get(path, "rich")).headers
            assert headers["cache-control"] == "no-store"
            assert "etag" not in headers


def preflight(h: Harness, origin: str) -> "asyncio.Future[Reply]":
    headers = {"origin": origin, "access-control-request-method": "POST"}
    return asyncio.ensure_future(h.request("OPTIONS", f"/v1/sales/{SALE}/purchases", headers))


async def test_no_other_sites_page_may_use_it_unless_named() -> None:
    async with harness() as h:
        for reply in (
            await preflight(h, SHOP),
            await h.request("GET", "/v1/sales", {"origin": SHOP}),
            await h.buy("key", headers={"origin": SHOP}),
        ):
            assert not any(name.startswith("access-control-") for name in reply.headers)
        assert (await preflight(h, SHOP)).status == 405


async def test_the_pages_of_a_site_that_is_named_may() -> None:
    async with harness(cors_origins=f"{SHOP}, http://localhost:3000") as h:
        for origin in (SHOP, "http://localhost:3000"):
            asked = await preflight(h, origin)
            assert (asked.status, asked.body) == (204, b"")
            assert asked.headers["access-control-allow-origin"] == origin
            assert "POST" in asked.headers["access-control-allow-methods"]
            assert {"authorization", "idempotency-key"} <= set(
                asked.headers["access-control-allow-headers"].split(", ")
            )
            bought = await h.buy(f"from {origin}", headers={"origin": origin})
            assert bought.status == 202
            assert bought.headers["access-control-allow-origin"] == origin
            assert {"location", "retry-after", "ratelimit-remaining"} <= set(
                bought.headers["access-control-expose-headers"].split(", ")
            )
            assert bought.headers["vary"] == "origin"
            # Tokens travel in a header; nothing that a browser would add by itself is ever good for anything.
            assert "access-control-allow-credentials" not in bought.headers


@pytest.mark.parametrize("origin", ["https://shop.example.evil.example", "http://shop.example", "null", "*", ""])
async def test_and_no_others(origin: str) -> None:
    async with harness(cors_origins=SHOP) as h:
        assert (await preflight(h, origin)).status == 405
        reply = await h.request("GET", "/v1/sales", {"origin": origin})
        assert reply.status == 200
        assert reply.headers["vary"] == "origin"
        assert "access-control-allow-origin" not in reply.headers


async def test_refusals_streams_and_the_door_are_readable_for_a_named_sites_pages_too() -> None:
    async with harness(cors_origins=SHOP, stream_s=0.2) as h:
        await h.inventories.push(reading(0, reset=True))
        await h.followed()
        await h.stock_is(0)
        refused = await h.buy("too late", headers={"origin": SHOP})
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (409, SHOP)
        assert h.gateway.parts.metrics.sold_out_at_door == 1
        again = await h.buy("too late", headers={"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in again.headers
        reader, writer = await h.connect()
        writer.write(f"GET /v1/sales/{SALE}/stock/stream HTTP/1.1\r\nhost: t\r\norigin: {SHOP}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        assert f"access-control-allow-origin: {SHOP}\r\n".encode() in head


@pytest.mark.parametrize(
    "origins",
    ["*", "shop.example", "https://shop.example/", "https://shop.example/path", "https://Shop.example", "ftp://x",
     "https://user@shop.example", "https://a.example,*", "https://", "https://*.example", "https://shop.example:443",
     "https://shop.example:", "https://shop.example:99999", "https://[::1", "https://büro.example"],
)  # fmt: skip
def test_a_setting_that_names_no_origin_is_refused(origins: str) -> None:
    nobody = "127.0.0.1:1"
    with pytest.raises(SettingsError, match="GATEWAY_CORS_ORIGINS"):
        Settings(nobody, nobody, nobody, jwt_secret=SECRET, cors_origins=origins)


async def test_a_token_is_needed_as_ever_by_a_named_sites_pages() -> None:
    async with harness(cors_origins=SHOP) as h:
        reply = await h.request("GET", "/v1/balance", {"origin": SHOP, "cookie": f"token={issue(SECRET, 'rich')}"})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (401, SHOP)
