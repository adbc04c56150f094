"""A stack of the benchmarks' own, with production's durability, whose settings can be changed between measurements."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.clients import Clients, open_clients
from stack.environment import passed_on
from stack.ports import Ports
from stack.private import private_stack
from stack.replicas import Replicas
from stack.stack import SERVERS, Stack


@dataclass
class Site:
    """What is measured. Methods of ``stack`` block: await them by ``off``."""

    stack: Stack
    #: Everything a client needs to know, secrets included.
    environment: Mapping[str, str]
    clients: Clients

    @property
    def secret(self) -> str:
        """By which the gateway checks tokens."""
        return self.environment["GATEWAY_JWT_SECRET"]

    async def configure(
        self, changes: Mapping[str, str] | None = None, replicas: Replicas | None = None
    ) -> Mapping[str, str]:
        """Lets the services run with these settings over their defaults, as many of each kind as said (by default as
        many as the site has); restarts only those whom a change concerns. The environment as it is now."""
        folder, before = self.stack.folder, self.environment
        replicas = replicas or Replicas.from_environment(before)
        changed = Stack(
            folder,
            Ports.from_environment(before),
            settings=passed_on(before) | dict(changes or {}),
            replicas=replicas,
        )
        await asyncio.to_thread(changed.start_services)
        await self.stop(*(name for name in self.stack.service_names if name not in replicas.names()))
        return changed.environment

    async def stop(self, *names: str) -> None:
        """Stops services, until ``configure`` starts them again."""
        for name in names:
            await asyncio.to_thread(self.stack.stop, name)


@asynccontextmanager
async def open_site(settings: Mapping[str, str] | None = None, replicas: Replicas | None = None) -> AsyncIterator[Site]:
    """Brings a whole stack up in a folder of its own, and discards it in the end."""
    stack, lease = await asyncio.to_thread(private_stack, settings, replicas=replicas, prefix="bench")
    try:
        await asyncio.to_thread(stack.start, *SERVERS)
        await asyncio.to_thread(stack.prepare_databases)
        await asyncio.to_thread(stack.start_services)
        async with open_clients(stack.environment) as clients:
            yield Site(stack, stack.environment, clients)
    finally:
        await asyncio.to_thread(stack.discard)
        lease.close()
