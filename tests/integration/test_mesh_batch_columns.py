"""A batch's columns reach SQL as they are, whatever is in them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from mesh.postgres import Pool, connection, open_pool
from tests.support.servers import Servers


@pytest_asyncio.fixture(scope="module")
async def pool(servers: Servers) -> AsyncIterator[Pool]:
    async with open_pool(servers.new_database("columns"), name="test", size=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", ["", " ", "NULL", "null", None, '"', "\\", '\\"', "{}", "{a,b}", "a,b", "'", "é\u2603\U0001f600"]),
        ("text", ["%s"]),
        ("text", []),
        ("text", [None, None]),
        ("bigint", [0, -1, 2**63 - 1, -(2**63), None]),
        ("smallint", [1, 2]),
        ("boolean", [True, False, None]),
        ("timestamptz", [datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), None]),
    ],
)  # fmt: skip
async def test_a_column_arrives_as_it_was_sent(pool: Pool, kind: str, values: list[object]) -> None:
    async with connection(pool) as conn:
        for _ in range(2):  # The second time it is a prepared statement.
            row = await (await conn.execute(f"SELECT %s::{kind}[]", (values,))).fetchone()
            assert row == (values,)
