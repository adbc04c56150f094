"""Reads give way to holds, but not for ever."""

import asyncio

from balance_svc.precedence import Precedence


async def test_reads_wait_until_the_last_of_those_that_go_first_is_done() -> None:
    precedence = Precedence()
    done: list[str] = []

    async def read() -> None:
        await precedence.after()
        done.append("read")

    with precedence.first():
        with precedence.first():
            reading = asyncio.ensure_future(read())
            await asyncio.sleep(0)
            assert done == []
        await asyncio.sleep(0)
        assert done == []
        done.append("hold")
    await reading
    assert done == ["hold", "read"]


async def test_reads_do_not_wait_when_nothing_goes_first_or_once_it_failed() -> None:
    precedence = Precedence()
    await precedence.after()
    try:
        with precedence.first():
            raise RuntimeError
    except RuntimeError:
        pass
    async with asyncio.timeout(0.01):
        await precedence.after()


async def test_reads_do_not_wait_for_ever() -> None:
    precedence = Precedence()
    with precedence.first():
        async with asyncio.timeout(5):
            await precedence.after()
