"""The load generator as a child process, seen from its parent."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.child import start_module
from bench.load.plan import Command, LoadPlan, LoadResults, Progress, line

_READY_S_MAX = 60.0
_END_S_MAX = 30.0
_decode_progress = msgspec.json.Decoder(Progress).decode


class LoadError(Exception):
    """The load generator did not do its work; the message says what was seen."""


class LoadProcess:
    """A running load generator. Make it with ``load_process``."""

    def __init__(self, process: asyncio.subprocess.Process, results_file: Path) -> None:
        self._process = process
        self._results_file = results_file

    async def progress(self) -> AsyncIterator[Progress]:
        """Every line from the generator, until it ends."""
        assert self._process.stdout is not None
        while text := await self._process.stdout.readline():
            yield _decode_progress(text)

    async def wait_ready(self) -> None:
        """Returns when all connections are open. Raises LoadError."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_READY_S_MAX):
                text = await self._process.stdout.readline()
        except TimeoutError as error:
            raise LoadError(f"the load generator was not ready within {_READY_S_MAX:.0f} s") from error
        if not text or _decode_progress(text).event != "ready":
            raise LoadError("the load generator could not open its connections")

    async def tell(self, verb: str, available: int = 0) -> None:
        """Sends a command. Raises LoadError when the generator is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line(Command(verb, available)))
            await self._process.stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            # RuntimeError is what uvloop raises for a pipe that is closed already.
            raise LoadError("the load generator has died") from error

    async def results(self) -> LoadResults:
        """Waits for the generator's end, after "finish", and reads its results. Raises LoadError."""
        try:
            async with asyncio.timeout(_END_S_MAX):
                code = await self._process.wait()
        except TimeoutError as error:
            raise LoadError(f"the load generator did not end within {_END_S_MAX:.0f} s") from error
        if code != 0:
            raise LoadError(f"the load generator ended with exit code {code}")
        content = await asyncio.to_thread(self._results_file.read_bytes)
        return msgspec.json.decode(content, type=LoadResults)


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


@asynccontextmanager
async def load_process(plan: LoadPlan) -> AsyncIterator[LoadProcess]:
    """Starts a load generator for ``plan``, whose results file is chosen here, and ends it on leaving."""
    with tempfile.TemporaryDirectory(prefix="flashsale-load-") as folder:
        results_file = Path(folder) / "results.json"
        plan_file = Path(folder) / "plan.json"
        plan = msgspec.structs.replace(plan, results_file=str(results_file))
        await asyncio.to_thread(_write_private, plan_file, msgspec.json.encode(plan))
        process = await start_module("bench.load.generator", str(plan_file))
        try:
            yield LoadProcess(process, results_file)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
