"""Tasks beside the calls: none ends unnoticed."""

import asyncio

import pytest

from mesh.background import Background
from mesh.server import until_stopped


async def _fail() -> None:
    raise ValueError("broken")


async def _end() -> None:
    pass


async def test_a_task_that_fails_ends_the_process_with_its_error_and_stops_the_others() -> None:
    tasks = Background()
    steady = tasks.keep(asyncio.Event().wait(), "steady")  # type: ignore[arg-type]
    tasks.start(_fail(), "failing")
    with pytest.raises(ValueError, match="broken"):
        await until_stopped(asyncio.Event(), tasks.crashed)
    await tasks.stop()
    assert steady.cancelled()


async def test_only_what_is_to_go_on_may_not_end() -> None:
    tasks = Background()
    await tasks.start(_end(), "short")
    assert not tasks.crashed.done()
    tasks.keep(_end(), "long")
    with pytest.raises(RuntimeError, match="long ended"):
        await until_stopped(asyncio.Event(), tasks.crashed)


async def test_a_stop_is_no_crash() -> None:
    tasks, stop = Background(), asyncio.Event()
    tasks.keep(asyncio.Event().wait(), "steady")  # type: ignore[arg-type]
    stop.set()
    await until_stopped(stop, tasks.crashed)
    await tasks.stop()
    assert not tasks.crashed.done()
