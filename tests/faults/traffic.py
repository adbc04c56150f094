"""Buyers who live through a fault: they buy, wait in line and leave it, repeat themselves, change their minds, want
their money back, give up, and follow the documented retry policy (docs/architecture.md, Errors and retries)."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.local_tokens import issue
from tests.faults.history import COME_AGAIN, History, Key
from tests.faults.http_client import Address, HttpClient, NoAnswerError, Reply

#: A buyer whose connection broke tries again after this, seconds.
_BROKEN_PAUSE_S = 0.1
#: A refused buyer looks this often whether anything is on sale again, seconds.
_HOPE_PAUSE_S = 0.05
#: A buyer who wants its money back looks this often whether it owns a share by now, seconds.
_LOOK_PAUSE_S = 0.5
_TOKEN_TTL_S = 7200
#: What makes a buyer who gives up easily go away; being asked to come again a little later does not.
_GIVEN_UP = (503, 504)


@dataclass(frozen=True)
class Buyer:
    """One person and how they behave."""

    user_id: str
    request_id: str
    quantity: int
    funded: bool
    #: Sends the same request once more after the 202, to another gateway where there is one.
    repeats: bool = False
    #: Cancels after the 202.
    cancels: bool = False
    #: Waits in line if there is no share.
    waits: bool = False
    #: Cancels if it has to wait.
    leaves: bool = False
    #: Asks for its money back once it owns a share.
    refunds: bool = False
    #: Never comes back when the connection breaks or something is unavailable.
    gives_up: bool = False

    @property
    def key(self) -> Key:
        """Which request it is."""
        return (self.user_id, self.request_id)


@dataclass(frozen=True)
class Habits:
    """How many buyers do what; parts of 1."""

    poor: float = 0.1
    repeat: float = 0.15
    cancel: float = 0.06
    give_up: float = 0.15
    wait: float = 0.4
    #: Of those who have to wait.
    leave: float = 0.2
    refund: float = 0.08


def crowd(rng: random.Random, prefix: str, size: int, habits: Habits, quantity_max: int = 1) -> list[Buyer]:
    """Buyers with habits drawn at random."""

    def one(number: int) -> Buyer:
        return Buyer(
            user_id=f"{prefix}-u{number:05}",
            request_id=f"{prefix}-r{number:05}",
            quantity=rng.randint(1, quantity_max),
            funded=rng.random() >= habits.poor,
            repeats=rng.random() < habits.repeat,
            cancels=rng.random() < habits.cancel,
            gives_up=rng.random() < habits.give_up,
            waits=rng.random() < habits.wait,
            leaves=rng.random() < habits.leave,
            refunds=rng.random() < habits.refund,
        )

    return [one(number) for number in range(size)]


class Traffic:
    """Sends all buyers within ``spread_s`` seconds, evenly, and lets those who found no share try again while
    ``on_sale()`` says that there is one. What everybody was told is in ``history``."""

    def __init__(
        self,
        buyers: Sequence[Buyer],
        sale_id: str,
        gateways: Sequence[Address],
        secret: str,
        history: History,
        *,
        on_sale: Callable[[], int],
        spread_s: float,
        rng: random.Random,
    ) -> None:
        self.buyers = buyers
        self.history = history
        self._path = f"/v1/sales/{sale_id}/purchases"
        self._gateways = gateways
        self._tokens = {buyer.user_id: issue(secret, buyer.user_id, _TOKEN_TTL_S) for buyer in buyers}
        self._on_sale = on_sale
        self._spread_s = spread_s
        self._rng = rng
        self._client = HttpClient()
        #: Buyers who have had their first answer, or gave up.
        self.answered = 0
        #: Buyers who wait for a share to return.
        self.hoping = 0
        #: Requests whose last answer was that everything is sold.
        self.refused: set[Key] = set()
        #: Requests with a purchase whose buyers want their money back and have not been answered yet.
        self.wants_refund: set[Key] = set()
        self._trying = 0
        self._ended = False

    @property
    def sent_all(self) -> bool:
        """Whether everybody has had a first answer."""
        return self.answered == len(self.buyers)

    def end_hope(self) -> None:
        """Sends those home who still wait for a share."""
        self._ended = True

    async def ask(self, client: HttpClient, user_id: str, request_id: str) -> Reply:
        """Sends one user's purchase once more, outside of the history. Raises NoAnswerError."""
        headers = self._headers(user_id, request_id)
        return await client.request(self._gateways[0], "POST", self._path, headers, b'{"quantity":1}')

    async def ask_balance(self, client: HttpClient, user_id: str) -> Reply:
        """Asks any gateway for a user's balance. Raises NoAnswerError."""
        headers = {"authorization": f"Bearer {self._tokens[user_id]}"}
        return await client.request(self._rng.choice(self._gateways), "GET", "/v1/balance", headers)

    async def run(self) -> None:
        """Lives through it; returns when nobody tries or hopes any more."""
        gap_s = self._spread_s / max(1, len(self.buyers))
        try:
            async with asyncio.TaskGroup() as group:
                for number, buyer in enumerate(self.buyers):
                    group.create_task(self._live(buyer, number * gap_s))
        finally:
            await self._client.close()

    async def _live(self, buyer: Buyer, after_s: float) -> None:
        await asyncio.sleep(after_s)
        status = await self._buy(buyer)
        self.answered += 1
        status = await self._buy_while_refused(buyer, status)
        if status != 202:
            return
        if buyer.refunds:
            self.wants_refund.add(buyer.key)
        if buyer.repeats:
            # Whose purchase has ended meanwhile may be told that all is sold, and comes back like anybody else.
            await self._buy_while_refused(buyer, await self._buy(buyer))
        if buyer.cancels or (buyer.leaves and buyer.key in self.history.in_line):
            await self.cancel(buyer)
        elif buyer.refunds:
            await self._refund(buyer)
        self.wants_refund.discard(buyer.key)

    async def _buy_while_refused(self, buyer: Buyer, status: int) -> int:
        """Comes back whenever something is on sale again, until the purchase is decided otherwise or it is over."""
        while buyer.key in self.refused and await self._hope():
            self._trying += 1
            try:
                status = await self._buy(buyer)
            finally:
                self._trying -= 1
        return status

    async def _hope(self) -> bool:
        """Waits until something is on sale for one more than already try; false when it is over."""
        self.hoping += 1
        try:
            while not self._ended:
                if self._on_sale() > self._trying:
                    return True
                await asyncio.sleep(_HOPE_PAUSE_S)
            return False
        finally:
            self.hoping -= 1

    async def _buy(self, buyer: Buyer) -> int:
        """Sends the purchase until it is decided; the status that decided it, 0 when the buyer gave up."""
        body = (b'{"quantity":%d,"waitlist":true}' if buyer.waits else b'{"quantity":%d}') % buyer.quantity
        while True:
            reply = await self._send("buy", buyer, "POST", self._path, body)
            self.refused.discard(buyer.key)
            if buyer.gives_up and (reply is None or reply.status in _GIVEN_UP):
                return 0
            if reply is None:
                await asyncio.sleep(_BROKEN_PAUSE_S)
            elif reply.status in COME_AGAIN:
                await asyncio.sleep(reply.retry_s)
            else:
                if reply.facts.reason == "SOLD_OUT":
                    self.refused.add(buyer.key)
                return reply.status

    async def cancel(self, buyer: Buyer) -> None:
        """Sends the cancel of a purchase that was accepted until it is decided, or the buyer gives up."""
        await self._until_decided("cancel", buyer, "DELETE", self._purchase_of(buyer))

    async def _refund(self, buyer: Buyer) -> None:
        """Asks for the money back as soon as the purchase is confirmed; returns when that is decided, the purchase has
        come to another end, or it is over."""
        while not self._ended:
            state = await self._state(buyer)
            if state == "CONFIRMED":
                await self._until_decided("refund", buyer, "POST", f"{self._purchase_of(buyer)}/refund")
                return
            if state in ("FAILED", "CANCELLED"):
                return
            await asyncio.sleep(_LOOK_PAUSE_S)

    async def _state(self, buyer: Buyer) -> str:
        """The state of a purchase that was accepted, outside of the history; empty when it cannot be told now."""
        headers = {"authorization": f"Bearer {self._tokens[buyer.user_id]}"}
        try:
            gateway = self._rng.choice(self._gateways)
            reply = await self._client.request(gateway, "GET", self._purchase_of(buyer), headers)
        except NoAnswerError:
            return ""
        return reply.facts.state if reply.status == 200 else ""

    def _purchase_of(self, buyer: Buyer) -> str:
        return f"/v1/purchases/{self.history.accepted[buyer.key]}"

    async def _until_decided(self, act: str, buyer: Buyer, method: str, path: str) -> None:
        while True:
            reply = await self._send(act, buyer, method, path)
            if reply is not None and reply.status not in COME_AGAIN:
                return
            if buyer.gives_up and (reply is None or reply.status in _GIVEN_UP):
                return
            await asyncio.sleep(_BROKEN_PAUSE_S if reply is None else reply.retry_s)

    def _headers(self, user_id: str, request_id: str) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self._tokens[user_id]}",
            "idempotency-key": request_id,
            "content-type": "application/json",
        }

    async def _send(self, act: str, buyer: Buyer, method: str, path: str, body: bytes = b"") -> Reply | None:
        headers = self._headers(buyer.user_id, buyer.request_id)
        began = time.monotonic()
        try:
            reply = await self._client.request(self._rng.choice(self._gateways), method, path, headers, body)
        except NoAnswerError as error:
            self.history.add(act, buyer.key, 0, reason=str(error), took_ms=_ms_since(began))
            return None
        facts = reply.facts
        self.history.add(
            act,
            buyer.key,
            reply.status,
            reason=facts.reason,
            purchase_id=facts.purchase_id,
            in_line=facts.state == "WAITLISTED",
            took_ms=_ms_since(began),
        )
        return reply


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
