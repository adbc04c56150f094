"""Everything a sale needs before anybody can buy: accounts with money, an open sale, a token for each user."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.common.v1.money_pb2 import Money
from flashsale.inventory.v1 import inventory_service_pb2 as inventory

from bench.clients import Clients, call
from bench.load.plan import Buyer, is_among
from gateway.local_tokens import issue
from mesh.errors import DomainError, reason_name

T = TypeVar("T")

CURRENCY = "EUR"
#: Items of one seeding call, and calls at once.
_BATCH, _CALLS_AT_ONCE = 5_000, 2
#: How long a token of a benchmark is good for, seconds.
_TOKEN_TTL_S = 4 * 3600


class SeedingError(Exception):
    """The sale could not be prepared; the message says why."""


@dataclass(frozen=True)
class Seeded:
    """A sale that is open, and its buyers."""

    sale_id: str
    shares: int
    price_minor: int
    buyers: tuple[Buyer, ...]
    funds_minor: dict[str, int]
    """What each user had before the sale."""

    def can_pay(self, user_id: str) -> bool:
        """Whether a user had the money for one share."""
        return self.funds_minor[user_id] >= self.price_minor

    @property
    def funded(self) -> int:
        """How many users can pay for one share."""
        return sum(1 for user_id in self.funds_minor if self.can_pay(user_id))


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


async def fund_accounts(clients: Clients, funds_minor: dict[str, int], run: str) -> None:
    """Opens an account for each user and puts its money on it. ``run`` makes the deposits of this run unique.

    Raises SeedingError when a deposit is refused, DomainError when the Balance Service stays away.
    """
    slots = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def fund(users: Sequence[str]) -> None:
        keys = [balance.AccountKey(user_id=user, currency_code=CURRENCY) for user in users]
        deposits = [
            balance.DepositItem(
                request_id=f"{run}-{user}",
                user_id=user,
                amount=Money(amount_minor=funds_minor[user], currency_code=CURRENCY),
            )
            for user in users
            if funds_minor[user] > 0
        ]
        async with slots:
            await call(clients.balance.BatchCreateAccounts, balance.BatchCreateAccountsRequest(accounts=keys))
            if not deposits:
                return
            answer = await call(clients.balance.BatchDeposit, balance.BatchDepositRequest(deposits=deposits))
        refused = [outcome for outcome in answer.outcomes if outcome.reason]
        if refused:
            raise SeedingError(f"{len(refused)} deposits refused, the first for {reason_name(refused[0].reason)}")

    await asyncio.gather(*(fund(users) for users in _batches(list(funds_minor))))


async def open_sale(clients: Clients, name: str, shares: int, price_minor: int, *, per_user_limit: int = 0) -> str:
    """Creates and opens a sale; its id. ``per_user_limit`` 0: the service's default. Raises DomainError."""
    request = inventory.CreateSaleRequest(
        request_id=str(uuid.uuid4()),
        display_name=name,
        unit_price=Money(amount_minor=price_minor, currency_code=CURRENCY),
        total=shares,
        per_user_limit=per_user_limit,
    )
    sale_id: str = (await call(clients.inventory.CreateSale, request)).sale.sale_id
    await call(clients.inventory.OpenSale, inventory.OpenSaleRequest(sale_id=sale_id))
    return sale_id


def tokens_of(secret: str, users: Sequence[str]) -> dict[str, str]:
    """A token for each user."""
    return {user: issue(secret, user, _TOKEN_TTL_S) for user in users}


def waiters(is_poor: Sequence[bool], wait: float) -> list[bool]:
    """Who of the users joins the waitlist, such that the part ``wait`` (0 to 1) does of the poor and of the others
    alike, evenly spread among each."""
    seen = [0, 0]
    waits = []
    for poor in is_poor:
        waits.append(is_among(seen[poor], wait))
        seen[poor] += 1
    return waits


async def seed(
    clients: Clients,
    secret: str,
    *,
    users: int,
    shares: int,
    poor: float,
    wait: float = 0.0,
    price_minor: int = 2500,
) -> Seeded:
    """Prepares a sale with ``users`` users of which the part ``poor`` (0 to 1) cannot pay, and the part ``wait`` asks
    to join the waitlist if there is no share.

    Raises SeedingError, also for a service that stays away.
    """
    run = "s" + uuid.uuid4().hex[:6]
    names = [f"{run}-u{number:05}" for number in range(1, users + 1)]
    funds = {
        name: price_minor * 2 // 5 if is_among(index, poor) else price_minor * 4 for index, name in enumerate(names)
    }
    try:
        await fund_accounts(clients, funds, run)
        sale_id = await open_sale(clients, f"Sale {run}", shares, price_minor)
    except DomainError as error:
        raise SeedingError(f"the sale could not be prepared: {error.reason_name}: {error.message}") from error
    waits = waiters([is_among(index, poor) for index in range(users)], wait)
    buyers = tuple(
        Buyer(name, token, f"{name}-buy", in_line)
        for (name, token), in_line in zip(tokens_of(secret, names).items(), waits, strict=True)
    )
    return Seeded(sale_id, shares, price_minor, buyers, funds)
