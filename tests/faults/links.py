"""The links between the parts of a stack, each through a proxy that can break it.

>>> with Links(upstreams(stack.environment)) as links:
...     settings = proxied(stack.environment, links)
...     # Start the services with these settings; GATEWAY_URL and GATEWAY_URLS among them are for the clients.
...     links["gateway->purchase"].black_hole("to_client")
"""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, Self

import uvloop

from tests.faults.tcp_pipes import Counters, Direction
from tests.faults.tcp_proxy import Address, TcpProxy

#: The settings that say where each link leads. Serving and settling processes share the links of
#: ``purchase``.
LINKS: dict[str, tuple[str, ...]] = {
    "client->gateway": ("GATEWAY_URLS", "GATEWAY_URL"),
    "gateway->purchase": ("GATEWAY_PURCHASE_TARGET",),
    "gateway->inventory": ("GATEWAY_INVENTORY_TARGET",),
    "gateway->balance": ("GATEWAY_BALANCE_TARGET",),
    "purchase->inventory": ("PURCHASE_INVENTORY_TARGET",),
    "purchase->balance": ("PURCHASE_BALANCE_TARGET",),
    "purchase->rabbitmq": ("PURCHASE_AMQP_URL", "SETTLEMENT_AMQP_URL"),
    "purchase->postgres": ("PURCHASE_DATABASE_URL",),
    "inventory->redis": ("INVENTORY_REDIS_URL",),
    "inventory->postgres": ("INVENTORY_DATABASE_URL",),
    "balance->postgres": ("BALANCE_DATABASE_URL",),
}
#: host:port as the stack writes them: the host is an IPv4 address.
_ADDRESS = re.compile(r"\b\d+(?:\.\d+){3}:\d+\b")
_START_S_MAX = 5.0


def upstreams(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """host:port of every process behind each link whose settings are there, in the order they are listed."""
    found = {
        name: list(dict.fromkeys(address for each in variables for address in _addresses(environment.get(each, ""))))
        for name, variables in LINKS.items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def proxied(environment: Mapping[str, str], links: "Links") -> dict[str, str]:
    """The settings that lead through the links: those of ``environment`` with each host:port replaced by its proxy's.

    Understands URLs with passwords, gRPC targets (``ipv4:a:1,b:2``) and lists of URLs. Raises KeyError for an address
    that has no proxy.
    """
    settings = {}
    for name, link in links.items():
        for variable in LINKS[name]:
            if value := environment.get(variable):
                settings[variable] = _led_through(link, value)
    return settings


def _led_through(link: "Link", value: str) -> str:
    # What stands before an @ are a user and a password, whatever they look like.
    before, at, rest = value.rpartition("@")
    return before + at + _ADDRESS.sub(lambda found: link.through(found[0]), rest)


def _addresses(value: str) -> list[str]:
    return [found[0] for found in _ADDRESS.finditer(value.rpartition("@")[2])]


class ProxyThread:
    """Runs proxies in a thread and loop of their own, so that they work while the caller's loop is busy. A context
    manager; its methods block."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp proxies", daemon=True)
        self._proxies: list[TcpProxy] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(), self._loop).result(_START_S_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, target: Address, *, listen_port: int = 0, seed: int | str = 0) -> TcpProxy:
        """A proxy that listens already. Raises OSError when the port is taken."""
        proxy = TcpProxy(target, listen_port=listen_port, seed=seed)
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), self._loop).result(_START_S_MAX)
        self._proxies.append(proxy)
        return proxy


class Link:
    """The proxies of one link, one for each process it leads to. Faults are those of TcpProxy, put on all of them; to
    break the way to one process only, use ``proxies``, which are in the order of the setting."""

    def __init__(self, proxies: Mapping[str, TcpProxy]) -> None:
        self._by_address = dict(proxies)
        self.proxies: Sequence[TcpProxy] = tuple(proxies.values())

    def through(self, address: str) -> str:
        """host:port of the proxy that leads to ``address``. Raises KeyError."""
        return self._by_address[address].address

    def count(self) -> list[Counters]:
        """What each proxy has seen."""
        return [proxy.count() for proxy in self.proxies]

    def effect(self, fault: str) -> int:
        """How often the fault of this name has taken effect."""
        return sum(counters.effects[fault] for counters in self.count())

    def each(self, command: Callable[[TcpProxy], object]) -> None:
        """Does something to every proxy."""
        for proxy in self.proxies:
            command(proxy)

    def cut(self) -> None:
        """Resets every connection, and each new one."""
        self.each(TcpProxy.cut)

    def cut_once(self) -> None:
        """Resets every connection."""
        self.each(TcpProxy.cut_once)

    def black_hole(self, direction: Direction | Literal["both"] = "both") -> None:
        """Swallows bytes, acknowledged."""
        self.each(lambda proxy: proxy.black_hole(direction))

    def unplug(self) -> None:
        """Loses packets, unacknowledged."""
        self.each(TcpProxy.unplug)

    def delay(self, seconds: float, jitter_s: float = 0.0) -> None:
        """Delays each way."""
        self.each(lambda proxy: proxy.delay(seconds, jitter_s))

    def throttle(self, bytes_per_s: float) -> None:
        """Bounds the rate of each connection."""
        self.each(lambda proxy: proxy.throttle(bytes_per_s))

    def lossy(self, probability: float = 0.05, shortest_s: float = 0.2, longest_s: float = 0.6) -> None:
        """Stalls now and then."""
        self.each(lambda proxy: proxy.lossy(probability, shortest_s, longest_s))

    def reset_in_reply(self, after_bytes: int | None = None, *, times: int = 1) -> None:
        """Cuts the next replies of each proxy in their middle."""
        self.each(lambda proxy: proxy.reset_in_reply(after_bytes, times=times))

    def half_open(self) -> None:
        """Closes the server's side only."""
        self.each(TcpProxy.half_open)

    def heal(self) -> None:
        """Ends every fault."""
        self.each(TcpProxy.heal)


class Links(Mapping[str, Link]):
    """A Link by name, such as ``gateway->purchase``, for each name in ``addresses`` (name -> host:port of every process
    it leads to, as ``upstreams`` gives). A context manager: proxies listen from entering it to leaving it, whether or
    not anything listens behind them yet. Random choices come from ``seed``."""

    def __init__(self, addresses: Mapping[str, Sequence[str]], *, seed: int = 0) -> None:
        self._addresses = {name: tuple(each) for name, each in addresses.items()}
        self._seed = seed
        self._links: dict[str, Link] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            thread = stack.enter_context(ProxyThread())
            for name, addresses in self._addresses.items():
                proxies = {}
                for number, address in enumerate(addresses):
                    host, _, port = address.rpartition(":")
                    proxies[address] = thread.start((host, int(port)), seed=f"{self._seed} {name} {number}")
                self._links[name] = Link(proxies)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def __getitem__(self, name: str) -> Link:
        return self._links[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def heal(self) -> None:
        """Ends every fault of every link."""
        for link in self._links.values():
            link.heal()
