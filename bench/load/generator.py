"""A process that is 50,000 buyers: `python -m bench.load.generator PLAN_FILE`.

Apart from the sale runner because it must have a processor core of its own: one process tops out near 45,000 requests a
second, so `bench.load.constant_server` measures that ceiling beside every figure. Reads commands on standard input,
writes progress on standard output (one JSON object a line, see bench.load.plan), and ends with the results file.
"""

import asyncio
import gc
import resource
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from bench.load.burst import Burst
from bench.load.plan import Command, LoadPlan, Progress, line

_PROGRESS_S = 0.1
#: Longest wait at the end for requests under way, seconds.
_FINISH_S_MAX = 15.0


def _tell(progress: Progress) -> None:
    sys.stdout.buffer.write(line(progress))
    sys.stdout.buffer.flush()


async def _watch(burst: Burst, plan: LoadPlan) -> None:
    """Reports, breaks off what is silent, and ends a first wave that takes too long."""
    while True:
        await asyncio.sleep(_PROGRESS_S)
        burst.abort_silent()
        if not burst.first_wave_over.is_set() and time.monotonic() - burst.started_at > plan.wave_s_max:
            burst.give_up_first_wave()
        _tell(burst.progress())


async def _obey(burst: Burst, plan: LoadPlan, commands: asyncio.StreamReader) -> None:
    """Carries out commands until "finish" or until the parent is gone."""
    decode = msgspec.json.Decoder(Command).decode
    watching: asyncio.Task[None] | None = None
    try:
        while text := await commands.readline():
            command = decode(text)
            if command.verb == "start" and watching is None:
                burst.start()
                watching = asyncio.create_task(_watch(burst, plan))
            elif command.verb == "stock":
                burst.on_stock(command.available)
            elif command.verb == "finish":
                await burst.quiet(_FINISH_S_MAX)
                return
    finally:
        if watching is not None:
            watching.cancel()


async def run(plan: LoadPlan) -> None:
    """Opens the connections, says "ready", does what it is told, writes the results file."""
    burst = Burst(plan)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await burst.connect()
    # A collection in the middle of the burst would be measured as the gateway's latency.
    gc.collect()
    gc.disable()
    _tell(burst.progress("ready"))
    try:
        await _obey(burst, plan, commands)
    finally:
        await burst.close()
    _tell(burst.progress())
    results = msgspec.json.encode(burst.results())
    await asyncio.to_thread(Path(plan.results_file).write_bytes, results)


def main() -> int:
    """Exit code 2 for a wrong call, 1 when the gateway takes no connections."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m bench.load.generator PLAN_FILE\n")
        return 2
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadPlan)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(run(plan))
    except OSError as error:
        sys.stderr.write(f"load generator: {plan.host}:{plan.port}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
