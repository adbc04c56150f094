"""Whatever is sent, the answer is a problem that names what is wrong, and never a 500."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.local_tokens import issue
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness

BUY = f"/v1/sales/{SALE}/purchases"


@pytest_asyncio.fixture(scope="module")
async def h() -> AsyncIterator[Harness]:
    async with harness(user_burst=1000) as made:
        yield made


def _is_problem(body: bytes, status: int) -> None:
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["reason"] == "INVALID_ARGUMENT"
    assert set(problem) >= {"type", "title", "status", "detail", "reason"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b"1",
        b'"quantity"',
        b'{"quantity": "1"}',
        b'{"quantity": 1.5}',
        b'{"quantity": true}',
        b'{"quantity": null}',
        b'{"quantity": 0}',
        b'{"quantity": -1}',
        b'{"quantity": 1001}',
        b'{"quantity": 99999999999999999999999999999999}',
        b'{"quantity": 1e400}',
        b'{"quantity": NaN}',
        b'{"quantity": 1, "price": 0}',
        b'{"waitlist": 1}',
        b'{"waitlist": null}',
        b'{"waitlist": "true"}',
        b'{"quantity": 0, "waitlist": true}',
        b'{"quantity": 1} {"quantity": 2}',
        b"\xff\xfe\x00",
        b'{"\xff": 1}',
        b'{"quantity": "\xc3\x28"}',
        b"[" * 4000,
        b'{"a":' * 800,
        b"\x00" * 100,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_a_body_that_is_no_wish_is_400(h: Harness, body: bytes) -> None:
    reply = await h.buy("key", body=body)
    assert reply.status == 400
    _is_problem(reply.body, 400)


@pytest.mark.parametrize("key", ["", " ", "x" * 129, "a\tb", "ünï", "\xff\xfe"], ids=lambda key: repr(key[:12]))
async def test_an_idempotency_key_that_cannot_name_a_purchase_is_400(h: Harness, key: str) -> None:
    reply = await h.buy(key)
    assert reply.status == 400
    _is_problem(reply.body, 400)
    assert reply.json["violations"][0]["field"] == "Idempotency-Key"


async def test_an_idempotency_key_of_128_odd_characters_is_taken(h: Harness) -> None:
    assert (await h.buy("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ x".ljust(128, "y"))).status == 202


async def test_a_missing_idempotency_key_is_400(h: Harness) -> None:
    reply = await h.request("POST", BUY, {"authorization": f"Bearer {issue(SECRET, 'rich')}"}, b"{}")
    _is_problem(reply.body, 400)


@pytest.mark.parametrize(
    "sale", ["x", "0", "%00", "%ff%fe", "..", "a" * 5000, f"{SALE}x", SALE.replace("-", ""), "%F0%9F%98%80", "'; --"]
)
async def test_a_sale_id_that_is_none_is_400_on_every_route(h: Harness, sale: str) -> None:
    sale = sale.replace(" ", "%20")
    for reply in (
        await h.buy("key", sale=sale),
        await h.get(f"/v1/sales/{sale}"),
        await h.get(f"/v1/sales/{sale}/stock"),
        await h.get(f"/v1/sales/{sale}/stock/stream"),
        await h.get(f"/v1/purchases/{sale}", "rich"),
        await h.request("DELETE", f"/v1/purchases/{sale}", {"authorization": f"Bearer {issue(SECRET, 'rich')}"}),
        await h.request("POST", f"/v1/purchases/{sale}/refund", {"authorization": f"Bearer {issue(SECRET, 'rich')}"}),
        await h.get(f"/v1/purchases/{sale}/receipt", "rich"),
        await h.get(f"/v1/purchases?sale_id={sale}", "rich"),
        await h.operate("POST", f"sales/{sale}/open"),
        await h.operate("POST", f"sales/{sale}/pause"),
        await h.operate("POST", f"sales/{sale}/close"),
        await h.operate("POST", f"sales/{sale}/total", b'{"total":7}'),
        await h.operate("GET", f"sales/{sale}/statement"),
        await h.operate("GET", f"sales/{sale}/changes"),
    ):
        assert reply.status == 400
        _is_problem(reply.body, 400)


@pytest.mark.parametrize(
    "path",
    [
        "//",
        "/v1",
        "/v1/nothing",
        "/v1/sales/a/b/c/d/e",
        f"/v1/sales/{SALE}/nothing",
        f"/v1/purchases/{SALE}/nothing",
        "/v1/operator",
        "/v1/operator/nothing",
        f"/v1/operator/sales/{SALE}",
        f"/v1/operator/sales/{SALE}/delete",
        "/%2e%2e/x",
    ],
)
async def test_an_unknown_route_is_404(h: Harness, path: str) -> None:
    reply = await h.get(path)
    assert reply.status == 404
    _is_problem(reply.body, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", BUY, "POST"),
        ("PUT", BUY, "POST"),
        ("POST", "/v1/balance", "GET"),
        ("DELETE", f"/v1/sales/{SALE}", "GET"),
        ("PATCH", f"/v1/purchases/{SALE}", "GET, DELETE"),
        ("BREW", "/healthz", "GET"),
        ("POST", "/v1/sales", "GET"),
        ("POST", "/v1/purchases", "GET"),
        ("GET", f"/v1/purchases/{SALE}/refund", "POST"),
        ("POST", f"/v1/purchases/{SALE}/receipt", "GET"),
        ("POST", "/v1/operator/overview", "GET"),
        ("GET", f"/v1/operator/sales/{SALE}/open", "POST"),
        ("PUT", f"/v1/operator/sales/{SALE}/pause", "POST"),
        ("DELETE", f"/v1/operator/sales/{SALE}/close", "POST"),
        ("GET", f"/v1/operator/sales/{SALE}/total", "POST"),
        ("POST", f"/v1/operator/sales/{SALE}/statement", "GET"),
        ("POST", f"/v1/operator/sales/{SALE}/changes", "GET"),
        ("POST", "/v1/operator/dead-letters", "GET"),
        ("GET", "/v1/operator/dead-letters/replay", "POST"),
        ("POST", "/v1/operator/parked", "GET"),
        ("GET", "/v1/operator/parked/replay", "POST"),
    ],
)
async def test_a_method_that_is_not_allowed_is_405_and_says_what_is(
    h: Harness, method: str, path: str, allowed: str
) -> None:
    reply = await h.request(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    _is_problem(reply.body, 405)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(
            (f"sales/{SALE}/total", body)
            for body in (b"", b"{}", b'{"total":0}', b'{"total":-1}', b'{"total":10000001}', b'{"total":"7"}', b"[7]")
        ),
        *((f"sales/{SALE}/total", body) for body in (b'{"total":1.5}', b'{"total":7,"x":1}', b"\xff", b"{", b"null")),
        *(("dead-letters/replay", body) for body in (b'{"most":0}', b'{"most":101}', b'{"most":null}', b"[]", b"{")),
        *(
            ("parked/replay", body)
            for body in (b"", b"{}", b'{"purchase_ids":[]}', b'{"purchase_ids":"x"}', b'{"purchase_ids":["x"]}')
        ),
        ("parked/replay", b'{"purchase_ids":[' + b",".join([b'"%d"' % n for n in range(101)]) + b"]}"),
    ],
    ids=repr,
)
async def test_an_operator_s_body_that_makes_no_sense_is_400(h: Harness, path: str, body: bytes) -> None:
    reply = await h.operate("POST", path, body)
    assert reply.status == 400
    _is_problem(reply.body, 400)


async def test_an_operator_s_body_is_bounded_and_json_too(h: Harness) -> None:
    assert (await h.operate("POST", "dead-letters/replay", b" " * 4097)).status == 413
    token = {"authorization": f"Bearer {issue(SECRET, 'olga', operator=True)}", "content-type": "text/plain"}
    assert (await h.request("POST", "/v1/operator/dead-letters/replay", token, b"{}")).status == 415


@pytest.mark.parametrize("query", ["page_size=0", "page_size=1001", "page_size=x", "page_size=", "page_size=%d9%a1"])
async def test_a_page_size_out_of_range_is_400(h: Harness, query: str) -> None:
    for path in (f"sales/{SALE}/statement", f"sales/{SALE}/changes", "dead-letters", "parked"):
        reply = await h.operate("GET", f"{path}?{query}")
        assert reply.status == 400
        assert reply.json["violations"][0]["field"] == "page_size"


async def test_a_page_token_beyond_any_is_400(h: Harness) -> None:
    token = "x" * 2000
    for reply in (
        await h.get(f"/v1/purchases?page_token={token}", "rich"),
        await h.operate("GET", f"parked?page_token={token}"),
    ):
        assert reply.status == 400
        assert reply.json["violations"][0]["field"] == "page_token"


async def test_a_body_above_4_kb_is_413_whether_announced_or_chunked(h: Harness) -> None:
    announced = await h.buy("key", body=b" " * 4097)
    assert announced.status == 413
    _is_problem(announced.body, 413)
    head = (
        f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}\r\nidempotency-key: key\r\n"
    )
    chunked = head + "transfer-encoding: chunked\r\n\r\n" + "1000\r\n" + " " * 4096 + "\r\n2\r\n  \r\n0\r\n\r\n"
    assert (await h.raw(chunked.encode())).startswith(b"413")
    huge = head + "content-length: 1" + "0" * 18 + "\r\n\r\n"
    assert (await h.raw(huge.encode())).startswith(b"413")


async def test_a_chunked_body_within_bounds_is_read(h: Harness) -> None:
    head = (
        f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}\r\nidempotency-key: key\r\n"
    )
    chunked = head + "transfer-encoding: chunked\r\n\r\n" + '5\r\n{"qua\r\n9\r\nntity":3}\r\n0\r\n\r\n'
    assert b'"quantity":3' in await h.raw(chunked.encode())


async def test_a_body_that_is_not_json_by_its_own_word_is_415(h: Harness) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        reply = await h.buy("key", headers={"content-type": kind})
        assert reply.status == 415
        _is_problem(reply.body, 415)
    assert (await h.buy("key", headers={"content-type": "Application/JSON; charset=utf-8"})).status == 202


async def test_an_authorization_header_beyond_any_token_is_431(h: Harness) -> None:
    for path in (BUY, "/v1/balance"):
        method = "POST" if path == BUY else "GET"
        reply = await h.request(method, path, {"authorization": "Bearer " + "x" * 5000, "idempotency-key": "k"})
        assert reply.status == 431
        _is_problem(reply.body, 431)


@pytest.mark.parametrize("wait", ["x", "-1", "31", "nan", "inf", "1e9", "9" * 500, "%00", "%ff", ""])
async def test_a_wait_out_of_range_is_400(h: Harness, wait: str) -> None:
    reply = await h.get(f"/v1/purchases/{SALE}?wait={wait}", "rich")
    assert reply.status == 400
    assert reply.json["violations"][0]["field"] == "wait"


@pytest.mark.parametrize(
    "query", ["currency=eur", "currency=EURO", "currency=%ff", "currency=E%00R", "&".join(["a=1"] * 30)]
)
async def test_a_currency_or_query_out_of_range_is_400(h: Harness, query: str) -> None:
    reply = await h.get(f"/v1/balance?{query}", "rich")
    assert reply.status == 400
    _is_problem(reply.body, 400)


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: t\r\n\r\n",
        b"POST /v1/balance HTTP/1.1\r\nhost: t\r\ncontent-length: abc\r\n\r\n",
        b"POST /v1/balance HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"POST /v1/balance HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        b"GET /v1/balance HTTP/1.1\r\nhost: t\r\nbad header\r\n\r\n",
        b"GET /v1/balance HTTP/1.1\r\nhost: t\r\nidempotency-key: a\x7fb\r\n\r\n",
        b"GET /v1/balance HTTP/1.1\r\nhost: t\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"z" * 100_000 + b" HTTP/1.1\r\nhost: t\r\n\r\n",
    ],
    ids=range(11),
)
async def test_what_is_no_http_ends_in_a_4xx_or_a_closed_connection(h: Harness, octets: bytes) -> None:
    reply = await h.raw(octets)
    assert reply == b"" or reply.startswith(b"4")
    assert (await h.get("/healthz")).status == 200


async def test_headers_that_are_not_utf_8_are_refused_or_ignored(h: Harness) -> None:
    head = b"GET /v1/balance HTTP/1.1\r\nhost: t\r\nx-odd: \xff\xfe\r\nauthorization: Bearer \xff\xfe\r\n\r\n"
    assert (await h.raw(head)).startswith(b"401")


async def test_a_client_that_leaves_in_the_middle_of_a_body_harms_nobody(h: Harness) -> None:
    for _ in range(20):
        _, writer = await h.connect()
        writer.write(
            f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}\r\n"
            f'idempotency-key: gone\r\ncontent-length: 14\r\n\r\n{{"quan'.encode()
        )
        await writer.drain()
        writer.close()
    assert (await h.buy("next")).status == 202
    async with asyncio.timeout(5):
        while h.gateway.app.in_flight:
            await asyncio.sleep(0.01)
    assert "gone" not in h.purchases.bought


async def test_a_body_that_does_not_come_is_408(h: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests._BODY_S_MAX", 0.2)
    head = (
        f"POST {BUY} HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {issue(SECRET, 'rich')}\r\nidempotency-key: late\r\n"
    )
    for rest in ("content-length: 14\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"):
        reply = await h.raw((head + rest).encode())
        assert reply.startswith(b"408")
        _is_problem(reply[4:], 408)


async def test_the_metrics_count_no_internal_errors(h: Harness) -> None:
    """Runs last in this file: whatever was sent above, nothing was answered 500."""
    text = h.gateway.metrics.text().decode()
    assert 'status="400"' in text
    assert 'status="500"' not in text
