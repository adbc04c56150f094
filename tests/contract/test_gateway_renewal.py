"""How an operator renews the gateways' own certificate (docs/operations.md): one process after the other is restarted
behind a balancer. No request is lost, and buyers are shown the new one."""

import asyncio
import itertools
import signal
import ssl
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from gateway.local_tokens import issue
from stack.ports import PortLease
from tests.contract.gateway_harness import SALE, SECRET, Harness, harness, until
from tests.contract.test_gateway_process import ROOT, _environment
from tests.support.certificates import Peers

#: How often the balancer looks, s, and for how long a gateway says that it will end.
LOOK_EVERY_S = 0.1
NOTICE_S = 2.0
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _length(head: str) -> int:
    line = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
    return int(line.partition(":")[2])


@dataclass
class GatewayProcess:
    """One gateway, and the balancer's connections to it."""

    port: int
    environment: dict[str, str]
    context: ssl.SSLContext
    process: Any = None
    healthy: bool = False
    kept: list[_Connection] = field(default_factory=list)

    async def start(self) -> None:
        command = (sys.executable, "-m", "gateway", "serve")
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL
        )

    async def connect(self) -> _Connection:
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname="inventory.flashsale"
        )

    async def health(self) -> str:
        """The whole answer on its health, in small letters; nothing if it takes no connection."""
        try:
            reader, writer = await self.connect()
        except OSError:
            return ""
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            return head + (await reader.readexactly(_length(head))).decode()
        except (OSError, asyncio.IncompleteReadError):
            return ""
        finally:
            writer.close()

    async def shown(self) -> int:
        """The serial number of the certificate that a new connection is shown."""
        _, writer = await self.connect()
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(der).serial_number

    def drop(self) -> None:
        for _, writer in self.kept:
            writer.close()
        self.kept.clear()


class Balancer:
    """Sends requests to those whose health is 200, in turn, over connections that are kept; and each one once."""

    def __init__(self, gateways: list[GatewayProcess]) -> None:
        self.gateways = gateways
        self.answers: Counter[Any] = Counter()
        self._turn = itertools.count()

    async def look_on(self) -> None:
        while True:
            for each in self.gateways:
                each.healthy = " 200 " in (await each.health()).partition("\r\n")[0]
                if not each.healthy:
                    each.drop()
            await asyncio.sleep(LOOK_EVERY_S)

    async def buy(self, key: str) -> None:
        await until(lambda: any(each.healthy for each in self.gateways), timeout_s=30)
        healthy = [each for each in self.gateways if each.healthy]
        gateway = healthy[next(self._turn) % len(healthy)]
        token = issue(SECRET, f"buyer-{key}")
        head = f"POST /v1/sales/{SALE}/purchases HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        try:
            kept = gateway.kept.pop() if gateway.kept else await gateway.connect()
            if kept[0].at_eof():
                kept = await gateway.connect()
            reader, writer = kept
            writer.write(f'{head}idempotency-key: {key}\r\ncontent-length: 14\r\n\r\n{{"quantity":1}}'.encode())
            reply = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().lower()
            await reader.readexactly(_length(reply))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.answers[repr(error)] += 1
            return
        self.answers[int(reply.split()[1])] += 1
        if "connection: close" in reply or not gateway.healthy:
            writer.close()
        else:
            gateway.kept.append(kept)


async def test_gateways_are_restarted_with_a_renewed_certificate_and_no_request_is_lost(tmp_path: Path) -> None:
    peers, lease = Peers(tmp_path), PortLease()
    files = peers.certify("inventory")
    context = ssl.create_default_context(cafile=str(files.authorities))
    async with harness() as h:
        target = f"127.0.0.1:{h.server.port}"
        gateways = []
        for name in ("gateway", "gateway-2"):
            listen = lease.ports.address(name)
            environment = _environment(
                **{f"GATEWAY_{kind}_TARGET": target for kind in ("PURCHASE", "INVENTORY", "BALANCE")},
                GATEWAY_LISTEN=listen,
                GATEWAY_TLS_CERTIFICATE=str(files.certificate),
                GATEWAY_TLS_KEY=str(files.key),
                GATEWAY_NOTICE_S=str(NOTICE_S),
            )
            gateways.append(GatewayProcess(int(listen.rpartition(":")[2]), environment, context))
        balancer = Balancer(gateways)
        tasks: list[asyncio.Task[None]] = []
        done = asyncio.Event()
        keys = map(str, itertools.count())

        async def buy_on() -> None:
            while not done.is_set():
                await balancer.buy(next(keys))
                await asyncio.sleep(0.005)

        async def answered(count: int) -> None:
            enough = balancer.answers.total() + count
            await until(lambda: balancer.answers.total() >= enough, timeout_s=30)

        try:
            for each in gateways:
                await each.start()
            looking = asyncio.create_task(balancer.look_on())
            await until(lambda: all(each.healthy for each in gateways), timeout_s=30)
            tasks = [asyncio.create_task(buy_on()) for _ in range(8)]
            await answered(50)
            old = await gateways[0].shown()
            peers.certify("inventory")
            for gateway in gateways:
                await _restart(gateway, h, answered)
                assert await gateway.shown() != old
            done.set()
            await asyncio.gather(*tasks)
            assert set(balancer.answers) == {202}
            bought = Counter(h.purchases.bought)
            assert bought.total() == len(bought) == balancer.answers[202]
        finally:
            done.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            for each in gateways:
                each.drop()
                if each.process is not None and each.process.returncode is None:
                    each.process.kill()
                    await each.process.wait()
            lease.close()


async def _restart(gateway: GatewayProcess, h: Harness, answered: Any) -> None:
    """As the page says, with requests under way."""
    before = len(h.purchases.batches)
    h.purchases.open.clear()
    await until(lambda: len(h.purchases.batches) > before, timeout_s=10)
    gateway.process.send_signal(signal.SIGTERM)
    await until(lambda: not gateway.healthy, timeout_s=10)
    # Whoever has not looked yet is still answered, and told to go elsewhere with the next request.
    answer = await gateway.health()
    assert answer.startswith("http/1.1 503 ")
    assert "\r\nconnection: close\r\n" in answer
    assert answer.endswith('{"state":"draining"}')
    h.purchases.open.set()
    assert await asyncio.wait_for(gateway.process.wait(), 20) == 0
    await answered(50)
    await gateway.start()
    await until(lambda: gateway.healthy, timeout_s=30)
    await answered(50)
