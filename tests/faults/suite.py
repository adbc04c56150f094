"""Runs faults one after the other in one world, a sale for each."""

import asyncio
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults import (
    clocks,
    fairness,
    kills,
    large_sale,
    life,
    messages,
    network_faults,
    overlaps,
    rolling,
    server_faults,
)
from tests.faults.faults import Fault
from tests.faults.report import Report, Result
from tests.faults.run import FaultError, Run
from tests.faults.world import World

REPORTS = Path(__file__).resolve().parents[2] / "reports"
#: Longest time that a fault may take to happen and to be healed, seconds.
_INJECT_S_MAX = 120.0


def all_faults() -> list[Fault]:
    """Every fault there is, in the order in which the suite runs them."""
    kinds = (kills, overlaps, life, server_faults, large_sale, network_faults, clocks, messages, rolling, fairness)
    return [fault for kind in kinds for fault in kind.faults()]


async def run_all(chosen: Sequence[Fault], seed: int, report: Report, *, judges_times: bool = True) -> None:
    """Runs the chosen faults and reports each as it ends. Goals of recovery count only with ``judges_times``."""
    report.begin(len(chosen))
    possible = []
    for fault in chosen:
        obstacle = fault.obstacle()
        if obstacle:
            report.skipped(fault, obstacle)
        else:
            possible.append(fault)
    for faked_clocks in (False, True):
        some = [fault for fault in possible if fault.faked_clocks is faked_clocks]
        if some:
            library = clocks.libfaketime() if faked_clocks else None
            with World(seed=seed, clocks=library, judges_times=judges_times) as world:
                for fault in some:
                    began = time.monotonic()
                    try:
                        # By name, so that a fault repeated alone makes the same choices.
                        result = await play(world, fault, random.Random(f"{seed} {fault.name}"))
                    except Exception as error:  # noqa: BLE001 (one fault must not keep the suite from the others)
                        result = Result(fault.name, fault.kind, fault.phase, time.monotonic() - began)
                        result = replace(result, trouble=f"the suite itself failed: {_first_cause(error)!r}")
                    report.add(result)


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _keep(world: World, run: Run, fault: Fault) -> None:
    """Keeps what tells how a promise broke: all answers, and the logs of every part."""
    folder = REPORTS / "broken" / fault.name.replace("/", " ")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.stack.folder.path / "log", folder)
    run.history.write(folder / "history.jsonl")


async def play(world: World, fault: Fault, rng: random.Random) -> Result:
    """One sale under one fault."""
    began = time.monotonic()
    world.new_log_lines()
    async with Run(world, fault.scale, rng) as run:
        trouble = ""
        try:
            async with asyncio.timeout(_INJECT_S_MAX):
                await run.moment(fault.phase)
                await fault.inject(run)
        except FaultError as error:
            trouble = str(error)
        except TimeoutError:
            trouble = f"it was not over after {_INJECT_S_MAX:.0f} s"
        finally:
            world.links.heal()
            for point in world.disarm():
                trouble = trouble or f"failpoint {point} was never reached"
        try:
            await run.finish()
        except Exception as error:  # noqa: BLE001 (what was seen until then is still told)
            trouble = trouble or f"the suite itself failed: {_first_cause(error)!r}"
        for line in world.new_log_lines():
            if '"unexpected error"' in line or '"level": "critical"' in line:
                run.verdict.broken("logs", line[:600])
        if run.verdict.violations:
            _keep(world, run, fault)
    return Result(
        name=fault.name,
        kind=fault.kind,
        phase=fault.phase,
        took_s=time.monotonic() - began,
        effects=run.effects,
        trouble=trouble,
        recovery_s=run.recovery_s,
        attempts=len(run.history.events),
        purchases=len(run.history.accepted),
        promoted=run.watcher.promoted,
        left_line=run.watcher.left_line,
        refunded=len(run.history.refunded),
        answers=dict(run.history.statuses),
        checked=dict(run.verdict.checked),
        rounds=run.watcher.rounds,
        blind_rounds=run.watcher.blind_rounds,
        violations=run.verdict.violations,
    )
