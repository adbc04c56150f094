"""Processes of the benchmarks' own: modules of this checkout, run by this interpreter."""

import asyncio
import os
import sys


async def start_module(name: str, *arguments: str) -> asyncio.subprocess.Process:
    """Runs ``python -m name``, its standard input and output as pipes; it finds modules where this process does."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", name, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
