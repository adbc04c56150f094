"""The system with two of each service, shared by the tests of what other teams use."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.servers import MeshStack


@pytest.fixture(scope="session")
async def replicated_stack() -> AsyncIterator[MeshStack]:
    """Two of each, so that one can be lost. No audit would let pass what is done here: money is held and shares are
    given to nobody. And nobody need hurry to do so, as docs/grpc-examples.md tells its readers to."""
    running = await asyncio.to_thread(lambda: MeshStack(replicas=2, SETTLEMENT_ABANDONED_AFTER_MS="600000"))
    try:
        yield running
    finally:
        await asyncio.to_thread(running.__exit__)
