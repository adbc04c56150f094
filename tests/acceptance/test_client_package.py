"""The client package as other teams use it: from its wheel, on the whole system, with two replicas of each service."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale_client import (
    Answer,
    AsyncClient,
    Client,
    FlashsaleError,
    Policy,
    Tls,
    Wish,
    new_request_id,
    reasons,
    state_name,
)

from bench.clients import Clients, open_clients
from bench.seeding import CURRENCY, fund_accounts, open_sale
from stack.certificates import SETTINGS
from stack.peers import peer_files
from tests.support.servers import MeshStack
from tests.support.waiting import eventually

CLIENT = Path(__file__).resolve().parents[2] / "client"
PRICE = 1000


@pytest.fixture(scope="module")
def stack(replicated_stack: MeshStack) -> MeshStack:
    return replicated_stack


@pytest.fixture(scope="module")
async def clients(stack: MeshStack) -> AsyncIterator[Clients]:
    async with open_clients(stack.environment) as opened:
        yield opened


def certificates(stack: MeshStack) -> dict[str, str]:
    """The environment by which a team's service is told who it is."""
    files = peer_files(stack.environment, "client/local")
    return files.settings() if files is not None else {}


def replicas(target: str) -> list[str]:
    return target.removeprefix("ipv4:").split(",")


def client_of(stack: MeshStack, policy: Policy | None = None) -> AsyncClient:
    return AsyncClient(
        purchase=replicas(stack.purchase_target),
        inventory=replicas(stack.inventory_target),
        tls=Tls.from_environment(certificates(stack)),
        policy=policy,
    )


async def funded(clients: Clients, users: list[str]) -> None:
    await fund_accounts(clients, dict.fromkeys(users, 10 * PRICE), f"fund-{uuid.uuid4().hex[:8]}")


def names(count: int) -> list[str]:
    run = uuid.uuid4().hex[:8]
    return [f"{run}-{number}" for number in range(count)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the wheel, unpacked where nothing else of this repository is."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CLIENT, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_the_stubs_and_types_and_nothing_of_the_services(wheel: Path) -> None:
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {"flashsale", "flashsale_client"}
    assert (wheel / "flashsale_client" / "py.typed").exists()
    assert (wheel / "flashsale" / "purchase" / "v1" / "purchase_service_pb2_grpc.pyi").exists()
    assert not (wheel / "flashsale" / "settlement").exists()


async def test_the_example_of_the_readme_buys_a_share(
    stack: MeshStack, clients: Clients, wheel: Path, tmp_path: Path
) -> None:
    (user,) = names(1)
    await funded(clients, [user])
    sale_id = await open_sale(clients, "Readme", 1, PRICE)
    example = re.search(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.S)
    assert example is not None
    program = tmp_path / "example.py"
    program.write_text(example[1])

    async def run(buyer: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), stack.purchase_target, sale_id, buyer),
            env={"PYTHONPATH": str(wheel), "PATH": os.environ["PATH"], **certificates(stack)},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, err.decode()
        return out.decode()

    told = (await run(user)).splitlines()
    assert told[-1] == "CONFIRMED [1]"
    assert len(told) == len(set(told))
    assert await run(names(1)[0]) == "too late\n"


@dataclass
class Traffic:
    """Buyers and readers without a pause, through one client."""

    client: AsyncClient
    sale_id: str
    users: list[str]
    answers: list[Answer] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    #: When each call that succeeded was answered.
    answered: list[float] = field(default_factory=list)

    async def buy(self) -> None:
        """One buyer after the other, each with a watch beside it."""
        while self.users:
            user = self.users.pop()
            try:
                purchase = await self.client.buy(self.sale_id, user)
                self.answered.append(time.monotonic())
                await self.client.purchase(purchase.purchase_id, user)
                self.answered.append(time.monotonic())
                self.answers.append(Answer(Wish(self.sale_id, user), purchase.purchase_id))
            except FlashsaleError as error:
                self.failures.append(error)
                await asyncio.sleep(0.001)

    async def since(self, moment: float, count: int = 200) -> None:
        """Waits until so many calls were answered after ``moment``."""

        async def enough() -> bool:
            return sum(1 for when in self.answered if when > moment) >= count or not self.users

        await eventually(enough, within_s=40)
        assert self.users, "the buyers ran out"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_call_fails_when_one_of_two_replicas_is_lost_under_load(
    stack: MeshStack, clients: Clients, number: signal.Signals
) -> None:
    users = names(20_000)
    sale_id = await open_sale(clients, "Replicas", 30_000, PRICE)
    async with client_of(stack) as client:
        traffic = Traffic(client, sale_id, users)
        buyers = [asyncio.create_task(traffic.buy()) for _ in range(16)]
        try:
            await traffic.since(0.0)
            for replica in ("purchase", "purchase-2"):
                pid = stack.stack.pid(replica)
                stack.stack.signal(replica, number)
                lost = time.monotonic()
                await traffic.since(lost)
                # Back, and both take calls again, before the other one goes.
                await asyncio.to_thread(stack.stack.wait_restarted, replica, pid, 30.0)
                await traffic.since(time.monotonic())
        finally:
            traffic.users.clear()
            await asyncio.gather(*buyers)
        assert traffic.failures == []
        bought = [answer async for answer in client.list_purchases(sale_id=sale_id)]
    # What was sent twice because its answer was lost was bought once.
    assert Counter(each.user_id for each in bought) == Counter(answer.wish.user_id for answer in traffic.answers)
    assert {each.purchase_id for each in bought} == {answer.purchase_id for answer in traffic.answers}


async def test_a_watch_goes_on_at_another_replica(stack: MeshStack, clients: Clients) -> None:
    poor, rich = names(2)
    await funded(clients, [rich])
    sale_id = await open_sale(clients, "Watched", 1, PRICE)
    # Nothing becomes of the purchases until the replicas have gone and come back.
    await asyncio.to_thread(stack.stack.stop, "settlement")
    try:
        async with client_of(stack) as client:
            first = await client.buy(sale_id, poor)
            waiting = await client.buy(sale_id, rich, waitlist=True)
            assert state_name(waiting) == "WAITLISTED"
            seen: list[str] = []
            begun = asyncio.Event()

            async def watch() -> None:
                async for purchase in client.watch(waiting.purchase_id, rich):
                    seen.append(state_name(purchase))
                    begun.set()

            watching = asyncio.create_task(watch())
            await begun.wait()
            # One of the two has the stream, and then the other.
            pid = stack.stack.pid("purchase")
            stack.stack.signal("purchase", signal.SIGKILL)
            await asyncio.to_thread(stack.stack.wait_restarted, "purchase", pid, 30.0)
            stack.stack.signal("purchase-2", signal.SIGKILL)
            assert seen == ["WAITLISTED"]
            await asyncio.to_thread(stack.stack.start, "settlement")
            await asyncio.wait_for(watching, 60)
            assert seen[-1] == "CONFIRMED"
            assert len(seen) == len(set(seen))
            assert state_name(await client.outcome(first.purchase_id)) == "FAILED"
    finally:
        await asyncio.to_thread(stack.stack.start, "settlement")


async def test_many_are_bought_for_in_batches_and_each_is_answered_by_itself(
    stack: MeshStack, clients: Clients
) -> None:
    users = names(1_200)
    await funded(clients, users)
    sale_id = await open_sale(clients, "Many", 1_000, PRICE)
    async with client_of(stack) as client, client.gatherer() as gatherer:
        answers = await asyncio.gather(*(gatherer.buy(Wish(sale_id, user)) for user in users), return_exceptions=True)
        bought = {answer.wish.user_id: answer.purchase_id for answer in answers if isinstance(answer, Answer)}
        assert len(bought) == 1_000
        assert sum(1 for answer in answers if isinstance(answer, reasons.SoldOut)) == 200
        owners = {each.user_id: each.purchase_id async for each in client.list_purchases(sale_id=sale_id)}
        assert bought == owners
        # The same wishes again, by request id: the same purchases. With other ids they are new, and too late.
        wishes = [answer.wish for answer in answers if isinstance(answer, Answer)][:3]
        again = await client.buy_many(wishes)
        assert {answer.wish.user_id: answer.purchase_id for answer in again}.items() <= owners.items()
        assert all(answer.bought for answer in again)
        anew = await client.buy_many([replace(wish, request_id=new_request_id()) for wish in wishes])
        assert {type(answer.error) for answer in anew} == {reasons.SoldOut}


async def test_without_asyncio_it_is_the_same(stack: MeshStack, clients: Clients) -> None:
    users = names(3)
    await funded(clients, users)
    sale_id = await open_sale(clients, "Sync", 2, PRICE)

    def use() -> None:
        tls = Tls.from_environment(certificates(stack))
        with Client(
            purchase=replicas(stack.purchase_target), inventory=replicas(stack.inventory_target), tls=tls
        ) as client:
            purchase = client.buy(sale_id, users[0], request_id="mine")
            assert client.buy(sale_id, users[0], request_id="mine").purchase_id == purchase.purchase_id
            with pytest.raises(reasons.RequestIdReused):
                client.buy(sale_id, users[0], 2, request_id="mine")
            assert [state_name(each) for each in client.watch(purchase.purchase_id)][-1] == "CONFIRMED"
            one, other = client.buy_many([Wish(sale_id, users[1]), Wish(sale_id, users[2])])
            assert one.bought
            assert isinstance(other.error, reasons.SoldOut)
            assert state_name(client.outcome(one.purchase_id, users[1])) == "CONFIRMED"
            with pytest.raises(reasons.PurchaseNotFound):
                client.purchase(purchase.purchase_id, users[1])
            assert client.receipt(purchase.purchase_id).hold.state == "CAPTURED"
            assert client.stock(sale_id).sold == 2
            assert client.refund(purchase.purchase_id, users[0]).purchase_id == purchase.purchase_id
            assert [each.user_id for each in client.list_purchases(sale_id=sale_id, user_id=users[1])] == [users[1]]
            with pytest.raises(ValueError, match="BalanceService"):
                client.balance(users[0], CURRENCY)

    await asyncio.to_thread(use)


async def test_a_client_may_buy_and_nothing_else(stack: MeshStack, clients: Clients) -> None:
    assert stack.environment.keys() >= SETTINGS, "the stack was to have certificates"
    sale_id = await open_sale(clients, "Allowed", 1, PRICE)
    async with client_of(stack) as client:
        with pytest.raises(reasons.PermissionDenied):
            await client.call(client.inventory.CloseSale, inventory.CloseSaleRequest(sale_id=sale_id))


async def test_a_client_buys_of_nobody_but_the_purchase_service(stack: MeshStack) -> None:
    tls = Tls.from_environment(certificates(stack))
    async with AsyncClient(purchase=replicas(stack.balance_target), tls=tls) as client:
        # The other side has a certificate, but another service's.
        with pytest.raises(reasons.Unavailable):
            await client.buy("sale", "user")
