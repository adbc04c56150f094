"""A process that calls one RPC again and again: `python -m bench.load.rpc_generator < PLAN`, which prints results.

A Python client reaches some 6,000 to 8,000 unary calls a second, less than some servers; so what is measured through it
is told beside what a server that does nothing gives through it.
"""

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import msgspec
import uvloop
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.balance.v1.balance_service_pb2_grpc import BalanceServiceStub
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from flashsale.purchase.v1 import purchase_service_pb2 as purchase
from flashsale.purchase.v1.purchase_service_pb2_grpc import PurchaseServiceStub

from bench.load.rpc_plan import RpcPlan, RpcResults
from bench.percentiles import percentile
from bench.seeding import CURRENCY
from mesh.channels import open_channel
from stack.certificates import PeerFiles
from stack.peers import transport_as

Act = Callable[[int], Awaitable[int]]


class Calls:
    """The calls of a plan, and their count."""

    def __init__(self, plan: RpcPlan, channel: grpc.aio.Channel) -> None:
        self._plan = plan
        self._purchases = PurchaseServiceStub(channel)
        self._balances = BalanceServiceStub(channel)
        self._number = 0
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self.took_ms: list[float] = []

    def _wish(self, number: int) -> purchase.CreatePurchaseRequest:
        return purchase.CreatePurchaseRequest(
            request_id=f"{self._plan.run}-{number}",
            user_id=self._plan.users[number % len(self._plan.users)],
            sale_id=self._plan.sale_id,
            quantity=1,
        )

    async def _create(self, number: int) -> int:
        await self._purchases.CreatePurchase(self._wish(number), timeout=self._plan.timeout_s)
        return 1

    async def _batch(self, number: int) -> int:
        first = number * self._plan.batch
        wishes = [self._wish(each) for each in range(first, first + self._plan.batch)]
        request = purchase.BatchCreatePurchasesRequest(requests=wishes)
        answer = await self._purchases.BatchCreatePurchases(request, timeout=self._plan.timeout_s)
        reasons = Counter(outcome.reason for outcome in answer.outcomes)
        accepted = reasons.pop(ErrorReason.ERROR_REASON_UNSPECIFIED, 0)
        for reason, count in reasons.items():
            self.refused[ErrorReason.Name(reason)] += count
        return accepted

    async def _balance(self, number: int) -> int:
        user = self._plan.users[number % len(self._plan.users)]
        request = balance.GetBalanceRequest(user_id=user, currency_code=CURRENCY)
        await self._balances.GetBalance(request, timeout=self._plan.timeout_s)
        return 1

    async def run(self) -> None:
        """Calls until the time is up."""
        act: Act = {"create": self._create, "batch": self._batch, "balance": self._balance}[self._plan.kind]
        ends_at = time.monotonic() + self._plan.seconds

        async def caller() -> None:
            while (began := time.monotonic()) < ends_at:
                number, self._number = self._number, self._number + 1
                try:
                    answered = await act(number)
                    self.answered += answered
                except grpc.aio.AioRpcError as error:
                    self.refused[error.code().name] += 1
                self.took_ms.append((time.monotonic() - began) * 1000)

        await asyncio.gather(*(caller() for _ in range(self._plan.at_once)))


async def run(plan: RpcPlan) -> RpcResults:
    """Runs a plan."""
    files = PeerFiles(**{name: Path(path) for name, path in plan.peer.items()}) if plan.peer else None
    async with open_channel(plan.target, transport=transport_as(files), service=plan.service) as channel:
        await channel.channel_ready()
        calls = Calls(plan, channel)
        gc.collect()
        gc.disable()
        began, cpu = time.monotonic(), time.process_time()
        await calls.run()
        wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    took = sorted(calls.took_ms)
    return RpcResults(wall_s, calls.answered, dict(calls.refused), percentile(took, 50), percentile(took, 99), cpu_s)


def main() -> int:
    """The process."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=RpcPlan)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(plan))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
