"""Runs a load generator from start to end, without the follow-up that a whole sale has."""

import asyncio

import msgspec

from bench.child import start_module
from bench.load.plan import LoadPlan, LoadResults
from bench.load.process import LoadError, load_process
from bench.load.rpc_plan import RpcPlan, RpcResults

_RPC_EXTRA_S_MAX = 30.0


async def run_load(plan: LoadPlan) -> LoadResults:
    """One wave of a plan, by a process of its own. Raises LoadError."""
    async with load_process(plan) as load:
        await load.wait_ready()
        await load.tell("start")
        async for progress in load.progress():
            if progress.first_wave_over:
                break
        else:
            raise LoadError("the load generator has died")
        await load.tell("finish")
        return await load.results()


async def run_rpcs(plan: RpcPlan) -> RpcResults:
    """The calls of a plan, by a process of its own. Raises LoadError."""
    process = await start_module("bench.load.rpc_generator")
    try:
        async with asyncio.timeout(plan.seconds + _RPC_EXTRA_S_MAX):
            output, _ = await process.communicate(msgspec.json.encode(plan))
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise LoadError("the gRPC load generator did not end") from error
    if process.returncode:
        raise LoadError(f"the gRPC load generator ended with exit code {process.returncode}")
    return msgspec.json.decode(output, type=RpcResults)
