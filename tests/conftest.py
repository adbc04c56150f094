"""Fixtures of all tests: the real servers, and the whole system."""

from collections.abc import Iterator

import pytest

from tests.support.servers import MeshStack, Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Redis, PostgreSQL and RabbitMQ of this test run, each started at its first use."""
    with Servers() as running:
        yield running


@pytest.fixture(scope="session")
def mesh_stack() -> Iterator[MeshStack]:
    """The whole system as processes, on servers of its own."""
    with MeshStack() as running:
        yield running
