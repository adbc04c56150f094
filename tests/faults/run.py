"""One sale under one fault: its buyers, its watcher, the moments at which a fault may strike, and its end."""

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.inventory.v1.inventory_service_pb2_grpc import InventoryServiceStub

from bench.clients import Clients, call, open_clients
from bench.seeding import CURRENCY, fund_accounts, open_sale
from stack.peers import open_peer_channel
from tests.faults.books import Books
from tests.faults.history import History
from tests.faults.settled import require_closed, require_end, until_closed, until_settled
from tests.faults.traffic import Buyer, Habits, Traffic, crowd
from tests.faults.watcher import Verdict, Watcher
from tests.faults.world import World

PRICE_MINOR = 2_500
#: Longest wait for the moment of a fault, and for a failpoint to fire, seconds.
_MOMENT_S_MAX = 30.0
_FIRE_S_MAX = 30.0
_LOOK_S = 0.02
#: Accounts that are paid a cent at once, and the pause before the next are, seconds.
_PAID_AT_ONCE, _PAY_PAUSE_S = 60, 0.1


class FaultError(Exception):
    """The fault did not happen as it should have, so it proves nothing."""


@dataclass(frozen=True)
class Scale:
    """The size of the sale. Buyers arrive evenly within ``spread_s`` seconds."""

    users: int = 320
    shares: int = 230
    spread_s: float = 1.5
    habits: Habits = field(default_factory=Habits)


class Run:
    """A sale that is under way. Used as an async context manager; leaving it ends whatever still runs."""

    def __init__(self, world: World, scale: Scale, rng: random.Random) -> None:
        self.world = world
        self.scale = scale
        self.rng = rng
        #: Shares on sale in all; it may be raised.
        self.total = scale.shares
        #: Whether the sale was closed while people still wanted shares of it.
        self.closed_early = False
        self.verdict = Verdict()
        self.history = History(self.verdict.broken)
        #: Seconds from the moment a part could work again to the moment it did, by what was measured.
        self.recovery_s: dict[str, float] = {}
        #: What took effect how often.
        self.effects: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Run":
        self._opened = open_clients(self.world.environment)
        self.clients: Clients = await self._opened.__aenter__()
        prefix = f"f{uuid.uuid4().hex[:8]}"
        self.buyers: list[Buyer] = crowd(self.rng, prefix, self.scale.users, self.scale.habits)
        funds = {buyer.user_id: PRICE_MINOR * 2 if buyer.funded else PRICE_MINOR // 2 for buyer in self.buyers}
        await fund_accounts(self.clients, funds, prefix)
        self.sale_id = await open_sale(self.clients, f"Fault {prefix}", self.scale.shares, PRICE_MINOR)
        self.books = Books(self.world.environment, self.sale_id)
        self.watcher = Watcher(self.books, self.history, self.verdict, lambda: self.total)
        self.traffic = Traffic(
            self.buyers,
            self.sale_id,
            self.world.gateways,
            self.world.environment["GATEWAY_JWT_SECRET"],
            self.history,
            on_sale=lambda: self.watcher.on_sale,
            spread_s=self.scale.spread_s,
            rng=self.rng,
        )
        self._tasks = [
            asyncio.create_task(self.watcher.run()),
            asyncio.create_task(self.traffic.run()),
            asyncio.create_task(self._move_money()),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watcher.stop()
        self.traffic.end_hope()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.books.__aexit__()
        await self._opened.__aexit__(None, None, None)

    async def _move_money(self) -> None:
        """Pays a cent into many accounts again and again, so that holds meet other changes of the same accounts."""
        for number in itertools.count():
            users = self.rng.sample(self.buyers, min(len(self.buyers), _PAID_AT_ONCE))
            deposits = [
                balance.DepositItem(
                    request_id=f"cent-{number}-{buyer.request_id}",
                    user_id=buyer.user_id,
                    amount=Money(amount_minor=1, currency_code=CURRENCY),
                )
                for buyer in users
            ]
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.clients.balance.BatchDeposit(balance.BatchDepositRequest(deposits=deposits), timeout=3)
            await asyncio.sleep(_PAY_PAUSE_S)

    async def moment(self, phase: str) -> None:
        """Waits for the middle of the burst, or of settlement after it."""
        if phase == "burst":
            await self.until(lambda: len(self.history.accepted) >= self.scale.shares // 5, "the burst")
        else:
            await self.until(lambda: self.traffic.sent_all and self.watcher.settled >= 20, "settlement")

    async def until(self, condition: Callable[[], bool], what: str, within_s: float = _MOMENT_S_MAX) -> None:
        """Waits for something in this process. Raises FaultError when it does not come."""
        deadline = time.monotonic() + within_s
        while not condition():
            for task in self._tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    task.result()
            if time.monotonic() > deadline:
                raise FaultError(f"{what} did not come within {within_s:.0f} s")
            await asyncio.sleep(_LOOK_S)

    async def fire(self, point: str, action: str = "kill") -> int:
        """Arms a failpoint and waits until a process has taken it; its process id. Raises FaultError."""
        self.world.arm(point, action)
        return await self.await_fired(point)

    async def await_fired(self, point: str) -> int:
        """The process id that took the point, once one has."""
        await self.until(lambda: bool(self.world.fired(point)), f"failpoint {point}", _FIRE_S_MAX)
        self.effects[point] = len(self.world.fired(point))
        return self.world.fired(point)[0]

    async def settlement_resumes(self, what: str, since: float) -> None:
        """Notes how long after ``since`` (monotonic) the next purchase was settled, if any was left to settle."""
        if not self._nothing_left():
            await self.until(
                lambda: self.watcher.settled_at > since or self._nothing_left(), f"settlement after {what}"
            )
            if self.watcher.settled_at > since:
                self.recovery_s[f"settlement after {what}"] = self.watcher.settled_at - since

    def _nothing_left(self) -> bool:
        return self.watcher.settled >= len(self.history.accepted) - self.watcher.in_line

    def require_within(self, took_s: float, most_s: float, what: str) -> None:
        """A goal of recovery. Times are judged on a machine that is the suite's alone."""
        if self.world.judges_times:
            self.verdict.require("recovery", took_s <= most_s, f"{what} after {took_s:.1f} s, more than {most_s:g} s")

    async def recalibrate(self, timeout_s: float = 10.0) -> None:
        """Asks one inventory process after the other for a recalibration until one has done it; that it fails is part
        of many faults."""
        request = inventory.RecalibrateSaleRequest(sale_id=self.sale_id)
        addresses = self.world.environment["INVENTORY_TARGET"].removeprefix("ipv4:").split(",")
        for address in self.rng.sample(addresses, len(addresses)):
            async with open_peer_channel(self.world.environment, "inventory", address) as channel:
                try:
                    await InventoryServiceStub(channel).RecalibrateSale(request, timeout=timeout_s)
                except grpc.aio.AioRpcError as error:
                    self.effects[f"recalibration answered {error.code().name}"] = 1
                else:
                    return

    async def raise_total(self, more: int) -> None:
        """Puts so many more shares on sale, however often that has to be asked for."""
        # Counted first: from here on so many may be sold.
        self.total += more
        request = inventory.RaiseSaleTotalRequest(sale_id=self.sale_id, total=self.total, actor="faults")
        await call(self.clients.inventory.RaiseSaleTotal, request, patience_s=_MOMENT_S_MAX)

    async def close(self) -> None:
        """Closes the sale while people still want shares of it."""
        self.closed_early = True
        request = inventory.CloseSaleRequest(sale_id=self.sale_id, actor="faults")
        await call(self.clients.inventory.CloseSale, request, patience_s=_MOMENT_S_MAX)

    async def finish(self) -> None:
        """Waits until nothing is under way any more, and checks the end; then closes the sale, and checks how its line
        ends."""
        await until_settled(self)
        self.traffic.end_hope()
        await asyncio.wait_for(self._tasks[1], 60)
        await until_settled(self)
        await require_end(self)
        await call(self.clients.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=self.sale_id))
        await until_closed(self)
        self.watcher.stop()
        await self._tasks[0]
        await require_closed(self)
