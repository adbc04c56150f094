"""The gateway's HTTP: whatever is sent, the answer is one that it knows, or the connection ends; never a 500."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from gateway.local_tokens import issue
from gateway.openapi.document import openapi_document
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness
from tests.fuzz.effort import effort
from tests.fuzz.requests import broken

_ID = "7d0fd0a8-6a7c-8b5e-9d65-0d8ff1b4d9c1"
ROUTES = (
    *(re.sub(r"{\w+}", "{}", path) for path in openapi_document()["paths"]),
    *("/", "/sales/{}", "/operator", "/pages/{}", "/{}"),
)
_TOKENS = (
    f"Bearer {issue(SECRET, 'rich')}",
    f"Bearer {issue(SECRET, 'olga', operator=True)}",
    f"Bearer {issue('another secret, as long as it has to be', 'rich')}",
    *("Bearer", "Bearer ", "Bearer a.b.c", "Basic cmljaDpyaWNo", "bearer e30.e30.", ""),
)
_latin = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=30)
_segments = st.one_of(
    st.sampled_from([SALE, _ID, SALE.upper(), "", ".", "..", "%00", "%2f", "%ff%fe", "a" * 3_000, "*", "x;y", "a?b#c"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#?"), max_size=20),
)
_names = ("wait", "page_size", "page_token", "sale_id", "currency", "x")
_queries = st.lists(
    st.tuples(st.sampled_from(_names), st.sampled_from(["0", "-1", "nan", "1e9", "", "%00", SALE, "EUR"]) | _latin),
    max_size=24,
)
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_wishes = st.fixed_dictionaries(
    {},
    optional={
        "quantity": st.sampled_from([0, 1, -1, 1_000, 1_001, 2**31, 2**63, 10**40, 1.0, 0.5, "1", True, None]) | _json,
        "waitlist": st.booleans() | _json,
        "total": st.integers() | _json,
        "most": st.integers() | _json,
        "open_time": st.sampled_from([None, "2030-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"]) | _json,
        "close_time": st.sampled_from([None, "0001-01-01T00:00:00+14:00", "2030-13-01T00:00:00Z", 0]) | _json,
        "user_ids": st.lists(st.text(max_size=200), max_size=60) | _json,
        "purchase_ids": st.lists(st.sampled_from([_ID, "", "x", 1, None]), max_size=120) | _json,
    },
)
_bodies = st.one_of(
    st.none(),
    _wishes.map(lambda value: json.dumps(value).encode()),
    _json.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=100),
    st.sampled_from([b"", b"{", b"[" * 3_000, b'{"quantity":1}', b" " * 4_096, b" " * 4_097]),
)


@st.composite
def http_requests(draw: st.DrawFn) -> bytes:
    """A request, right in most of its parts."""
    path = draw(st.sampled_from(ROUTES)).replace("{}", draw(_segments))
    query = draw(_queries) if draw(st.booleans()) else []
    if query:
        path += "?" + "&".join(f"{name}={value}" for name, value in query)
    method = draw(st.sampled_from(["GET", "POST", "DELETE", "POST", "PUT", "OPTIONS", "BREW"]))
    lines = [f"{method} {path} HTTP/1.1", "host: t"]
    if draw(st.integers(0, 4)):
        lines.append(f"authorization: {draw(st.sampled_from(_TOKENS) | _latin)}")
    if draw(st.integers(0, 3)):
        lines.append(f"idempotency-key: {draw(st.sampled_from(['key', 'x' * 129, 'a b', '']) | _latin)}")
    if draw(st.booleans()):
        kinds = ["application/json", "text/plain", "application/json; charset=utf-16", "multipart/form-data"]
        lines.append(f"content-type: {draw(st.sampled_from(kinds))}")
    lines += [
        f"x-{name}: {value}"
        for name, value in draw(st.dictionaries(st.sampled_from("abc"), _latin, max_size=3)).items()
    ]
    body = draw(_bodies)
    if body is None:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if draw(st.integers(0, 3)):
        lines.append(f"content-length: {len(body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
    lines.append("transfer-encoding: chunked")
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n" if body else b""
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + chunk + b"0\r\n\r\n"


@pytest_asyncio.fixture(scope="module")
async def h() -> AsyncIterator[Harness]:
    async with harness(user_burst=1_000_000, user_rate_per_s=1_000_000.0) as made:
        yield made


#: What the gateway answers; 503 when what is behind it is away, which here it never is.
KNOWN = {200, 202, 204, 304, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 417, 429, 431}


async def _answer(h: Harness, octets: bytes, patience_s: float) -> tuple[int, dict[str, str]] | None:
    """Status and headers of the first answer; None when the connection ends without one. Raises TimeoutError when
    neither happens."""
    reader, writer = await h.connect()
    try:
        writer.write(octets)
        async with asyncio.timeout(patience_s):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        return None
    finally:
        writer.close()
    lines = head.decode("latin-1").split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)


@effort(400)
@given(octets=http_requests())
async def test_a_request_of_the_right_form_is_answered(h: Harness, octets: bytes) -> None:
    answer = await _answer(h, octets, 15)
    if answer is not None:
        status, headers = answer
        assert status in KNOWN
        # What hyper refuses by itself has no body.
        if status >= 400 and headers.get("content-length", "0") != "0":
            assert headers["content-type"] == "application/problem+json"


@effort(200)
@given(data=st.data())
async def test_octets_without_a_form_end_in_an_answer_or_a_closed_connection(h: Harness, data: Any) -> None:
    octets = data.draw(http_requests().flatmap(broken), label="octets")
    # What was cut off may go on for all that the gateway knows.
    with contextlib.suppress(TimeoutError):
        answer = await _answer(h, octets, 0.05)
        assert answer is None or answer[0] in KNOWN


async def test_nothing_was_a_fault_of_ours_and_buyers_can_buy(h: Harness) -> None:
    """Runs last in this file."""
    assert 'status="500"' not in h.gateway.metrics.text().decode()
    assert not h.gateway.crashed.done()
    assert (await h.buy("after all that")).status == 202
