"""The stock of a sale as server-sent events."""

import asyncio
import json

import pytest

from gateway import streams
from tests.contract.gateway_harness import OTHER_SALE, SALE, Harness, harness, reading, until


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readline()).strip(), 16)
    octets = await reader.readexactly(size)
    await reader.readexactly(2)
    return octets


async def _open_stream(
    h: Harness, last_id: str | None = None, sale: str = SALE
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await h.connect()
    seen = f"last-event-id: {last_id}\r\n" if last_id is not None else ""
    writer.write(f"GET /v1/sales/{sale}/stock/stream HTTP/1.1\r\nhost: t\r\n{seen}\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"text/event-stream" in head
    assert await _chunk(reader) == b"retry: 1000\n\n"
    return reader, writer


async def test_the_stock_stream_tells_the_present_stock_and_each_change() -> None:
    async with harness() as h:
        reader, writer = await _open_stream(h)
        async with asyncio.timeout(5):
            first = await _chunk(reader)
            assert first.startswith(b"event: stock\nid: 1.0\ndata: ")
            assert json.loads(first.partition(b"data: ")[2])["available"] == 5
            await h.inventories.push(reading(3, reset=False))
            assert json.loads((await _chunk(reader)).partition(b"data: ")[2])["available"] == 3
        writer.close()
        await until(lambda: h.gateway.parts.streams.open == 0)


async def test_stock_streams_are_bounded_in_number_and_in_time_and_end_when_the_gateway_drains() -> None:
    async with harness(streams_max=2, stream_s=1.0) as h:
        (reader, writer), (_, other) = await _open_stream(h), await _open_stream(h)
        assert (await h.get(f"/v1/sales/{SALE}/stock/stream")).status == 429
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n0\r\n\r\n")
        await until(lambda: h.gateway.parts.streams.open == 0)
        writer.close()
        other.close()
        reader, writer = await _open_stream(h)
        h.gateway.parts.draining.set()
        async with asyncio.timeout(0.9):
            await reader.readuntil(b"\r\n0\r\n\r\n")


async def test_many_viewers_share_a_budget_of_events_and_all_see_the_last_reading() -> None:
    async with harness(pushes_per_s=20.0) as h:
        loop, viewers = asyncio.get_running_loop(), [await _open_stream(h) for _ in range(8)]
        seen: list[list[int]] = [[] for _ in viewers]

        async def view(reader: asyncio.StreamReader, shown: list[int]) -> None:
            while not shown or shown[-1] != 1:
                event = await _chunk(reader)
                if event.startswith(b"event"):
                    shown.append(json.loads(event.partition(b"data: ")[2])["available"])

        views = [asyncio.create_task(view(reader, shown)) for (reader, _), shown in zip(viewers, seen, strict=True)]
        began = loop.time()
        for available in range(40, 0, -1):
            await h.inventories.push(reading(available, reset=False))
            await asyncio.sleep(0.02)
        await asyncio.wait_for(asyncio.gather(*views), 5)
        later = [event for shown in seen for event in shown[1:]]
        assert len(later) <= 20 * (loop.time() - began) + 4, "4: two rounds' worth saved up"
        assert all(shown == sorted(shown, reverse=True) for shown in (each[1:] for each in seen))
        for _, writer in viewers:
            writer.close()


async def test_a_stream_of_an_unknown_sale_is_404() -> None:
    async with harness() as h:
        assert (await h.get(f"/v1/sales/{OTHER_SALE}/stock/stream")).status == 404


async def test_strangers_cannot_make_the_gateway_follow_one_sale_after_another() -> None:
    async with harness() as h:
        for i in range(100):
            await h.get(f"/v1/sales/3a6f4c1e-0d1b-4a55-8c7e-{i:012d}/stock/stream")
        assert len(h.inventories.watches) < 60
        await h.followed()


def _told(event: bytes) -> tuple[str, int]:
    """Id and available units of an event."""
    fields = dict(line.split(": ", 1) for line in event.decode().strip().split("\n"))
    return fields["id"], json.loads(fields["data"])["available"]


async def test_a_change_is_told_at_once_and_further_ones_no_more_than_twenty_times_a_second() -> None:
    async with harness() as h:
        loop = asyncio.get_running_loop()
        reader, writer = await _open_stream(h)
        await _chunk(reader)
        for available in (4, 3, 2):
            # Nothing was told for longer than a round, so nothing need be waited for.
            await asyncio.sleep(0.2)
            pushed_at = loop.time()
            await h.inventories.push(reading(available, reset=False))
            assert _told(await _chunk(reader))[1] == available
            assert loop.time() - pushed_at < 0.1
        began, events, told = loop.time(), 0, -1
        for available in range(200, -1, -1):
            await h.inventories.push(reading(available, total=300, reset=False))
            await asyncio.sleep(0.002)
        while told != 0:
            told = _told(await _chunk(reader))[1]
            events += 1
        assert events <= 20 * (loop.time() - began) + 2
        writer.close()


async def test_a_change_does_not_wait_for_what_was_told_of_another_sale(monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness() as h:
        h.inventories.last[OTHER_SALE] = reading(available=9)
        reader, writer = await _open_stream(h)
        await _chunk(reader)
        other_reader, other_writer = await _open_stream(h, sale=OTHER_SALE)
        await _chunk(other_reader)
        monkeypatch.setattr(streams, "_EVENT_S", 1.0)
        for available in (4, 3):
            # Long enough for either to be told of a change at once.
            await asyncio.sleep(1.1)
            await h.inventories.push(reading(available, reset=False), OTHER_SALE)
            assert _told(await _chunk(other_reader))[1] == available
            await h.inventories.push(reading(available, reset=False))
            async with asyncio.timeout(0.7):
                assert _told(await _chunk(reader))[1] == available
        writer.close()
        other_writer.close()


async def test_a_reading_after_one_that_came_late_is_not_late_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness() as h:
        reader, writer = await _open_stream(h)
        await _chunk(reader)
        monkeypatch.setattr(streams, "_EVENT_S", 1.0)
        monkeypatch.setattr(streams, "_LATE_S", 0.9)
        loop = asyncio.get_running_loop()
        sent_at, told_at = [], []
        # Nothing was told for more than a second, for a part of one, and twice in a row.
        for available, pause_s in ((4, 1.1), (3, 0.3), (2, 0.0)):
            await asyncio.sleep(pause_s)
            sent_at.append(loop.time())
            await h.inventories.push(reading(available, reset=False))
            assert _told(await _chunk(reader))[1] == available
            told_at.append(loop.time())
        assert max(told_at[0] - sent_at[0], told_at[1] - sent_at[1]) < 0.5
        assert told_at[2] - sent_at[0] >= 1.0, "not three within a second"
        writer.close()


async def test_a_viewer_who_comes_back_is_told_the_present_reading_first_and_none_older_than_its_last() -> None:
    async with harness() as h:
        await h.inventories.push(reading(4, changes=7))
        await h.followed()
        await h.stock_is(4)
        for last_id in ("1.3", "1.7", "0.99", "nonsense", "1.", ".7", "1.7.7", "-1.9", "²." + "9" * 30):
            reader, writer = await _open_stream(h, last_id)
            async with asyncio.timeout(0.3):
                assert _told(await _chunk(reader)) == ("1.7", 4), "at once, whatever it saw before"
            writer.close()
        # Another gateway had told it more.
        coming = asyncio.ensure_future(_open_stream(h, "1.9"))
        await asyncio.sleep(0.1)
        assert not coming.done()
        await h.inventories.push(reading(2, changes=9, reset=False))
        reader, writer = await coming
        assert _told(await _chunk(reader)) == ("1.9", 2)
        writer.close()
        # A reading that never comes is not waited for without end.
        async with asyncio.timeout(2):
            reader, writer = await _open_stream(h, "99.1")
            assert _told(await _chunk(reader)) == ("1.9", 2)
        writer.close()


async def test_the_line_is_told_with_the_stock() -> None:
    async with harness() as h:
        await h.inventories.push(reading(0, waiting=3))
        await h.followed()
        await h.stock_is(0)
        assert (await h.get(f"/v1/sales/{SALE}/stock")).json["waiting"] == 3
        reader, writer = await _open_stream(h)
        assert json.loads((await _chunk(reader)).partition(b"data: ")[2])["waiting"] == 3
        writer.close()


async def test_many_viewers_cost_one_stream_of_the_inventory_service() -> None:
    async with harness() as h:
        writers = [(await _open_stream(h))[1] for _ in range(30)]
        assert h.inventories.watches == [SALE]
        for writer in writers:
            writer.close()
