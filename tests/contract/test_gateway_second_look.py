"""Refusing as sold out where other gateways sell the same shares: only what a later reading confirms."""

import asyncio

from mesh.identity import fingerprint
from tests.contract.gateway_harness import harness, reading


async def test_a_crowd_is_refused_by_a_handful_of_readings() -> None:
    async with harness(sole=False) as h:
        await h.inventories.push(reading(available=0))
        await h.followed()
        replies = await asyncio.gather(*(h.buy(f"key-{i}", user=f"user-{i}") for i in range(200)))
        assert [(reply.status, reply.json["reason"]) for reply in replies] == [(409, "SOLD_OUT")] * 200
        assert h.purchases.batches == []
        assert 1 <= h.inventories.reads < 50


async def test_who_got_a_unit_at_another_gateway_after_the_last_reading_is_not_refused() -> None:
    async with harness(sole=False) as h:
        await h.inventories.push(reading(available=0, changes=5))
        await h.followed()
        # The gate knows of one holder more than the stream has told yet.
        h.inventories.now = reading(available=0, changes=6).stock
        buying = asyncio.ensure_future(h.buy("theirs"))
        while h.inventories.reads == 0:
            await asyncio.sleep(0.001)
        await h.inventories.push(reading(available=0, changes=6, reset=False, added=[fingerprint("theirs")]))
        assert (await buying).status == 202


async def test_where_no_later_reading_is_to_be_had_nobody_is_refused_at_the_door() -> None:
    async with harness(sole=False) as h:
        await h.inventories.push(reading(available=0, changes=5))
        await h.followed()
        # The stream never comes this far.
        h.inventories.now = reading(available=0, changes=9).stock
        assert (await h.buy("key")).status == 202
        assert h.purchases.bought == ["key"]
