"""Gathers single buys into batches: a service that buys for many users needs one call for hundreds of them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from flashsale_client.errors import FlashsaleError
from flashsale_client.policy import Policy
from flashsale_client.reasons import DeadlineExceeded, Overloaded, Unavailable
from flashsale_client.wishes import Answer, Wish

BuyMany = Callable[[Sequence[Wish]], Awaitable[list[Answer]]]


class Gatherer:
    """Takes one wish at a time from any number of tasks and buys them together, each answered by itself.

    Nobody is made to wait for others: while batches are under way the next one gathers, so batches grow with the load.
    A wish whose task is cancelled before it was sent is not sent. Leaving the context waits for what is under way.
    """

    def __init__(self, buy_many: BuyMany, policy: Policy) -> None:
        self._buy_many = buy_many
        self._policy = policy
        self._waiting: deque[tuple[Wish, asyncio.Future[Answer]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._scheduled = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        while self._tasks or self._waiting:
            self._send()
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)

    @property
    def waiting(self) -> int:
        """Wishes that wait for a batch."""
        return len(self._waiting)

    async def buy(self, wish: Wish) -> Answer:
        """Buys it together with others; its own answer, which is a purchase. Raises what the wish has come to
        otherwise, as ``AsyncClient.buy`` does, DeadlineExceeded when the policy's time for a buy is up (a wish that has
        not been sent by then never is), and Overloaded at once when too many wait already."""
        if self._closed:
            raise Unavailable("the gatherer is closed").of_request(wish.request_id)
        if len(self._waiting) >= self._policy.queue_max:
            raise Overloaded(f"{len(self._waiting)} wishes wait already").of_request(wish.request_id)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((wish, future))
        if not self._scheduled:
            # One turn of the loop later, so that all who come in this turn share a batch.
            self._scheduled = True
            loop.call_soon(self._send)
        try:
            async with asyncio.timeout(self._policy.buy_timeout_s):
                answer = await future
        except TimeoutError as error:
            raise DeadlineExceeded("not bought in time").of_request(wish.request_id) from error
        if answer.error is not None:
            raise answer.error
        return answer

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._tasks) < self._policy.batches_at_once:
            batch: list[tuple[Wish, asyncio.Future[Answer]]] = []
            while self._waiting and len(batch) < self._policy.batch_max:
                wish, future = self._waiting.popleft()
                if not future.done():
                    batch.append((wish, future))
            if batch:
                task = asyncio.get_running_loop().create_task(self._buy(batch))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._send()

    async def _buy(self, batch: "list[tuple[Wish, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._buy_many([wish for wish, _ in batch])
            if [answer.wish for answer in answers] != [wish for wish, _ in batch]:
                raise RuntimeError("a batch got the answers to other wishes")
        except BaseException as error:
            reason = error if isinstance(error, FlashsaleError) else Unavailable("the batch broke off")
            for wish, future in batch:
                if not future.done():
                    future.set_exception(reason.of_request(wish.request_id))
                    # Whoever asked may be gone by now.
                    future.exception()
            if not isinstance(error, FlashsaleError):
                raise
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
