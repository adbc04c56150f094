"""The burst: who sends when, over which connection, and what each answer means for its buyer."""

import asyncio
import time
from collections import Counter, deque
from typing import cast

from bench.load.http_answers import Answer, AnswerError, cut_answer, facts_of, retry_delay_ms
from bench.load.plan import BuyerResult, LoadPlan, LoadResults, Progress, is_among, render_request

#: Sends of the second wave beyond the units known to be on sale, so that a stale reading leaves none lying.
STOCK_MARGIN = 4
#: Wait before a repetition after a broken connection, and before a connection is opened anew, seconds.
_BROKEN_PAUSE_S = 0.1
#: Connections opened at once: fewer than any listen backlog.
_OPENING_MAX = 64
#: How long after it has sent a buyer leaves who does not wait, seconds.
_GONE_AFTER_S = 0.003
#: Pause between two looks at who arrives, seconds.
_ARRIVAL_S = 0.001
#: Times a connection may be opened anew, as a multiple of the connections.
_REOPEN_FACTOR = 5


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way, as a browser has it."""

    __slots__ = ("_burst", "_unread", "buyer", "sent_at", "transport")

    def __init__(self, burst: "Burst") -> None:
        self._burst = burst
        self._unread = b""
        self.buyer = -1
        self.sent_at = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the interface without the base class.
        self.transport = cast(asyncio.Transport, transport)

    def send(self, buyer: int, request: bytes, now: float) -> None:
        assert self.transport is not None
        assert self.buyer < 0
        self.buyer, self.sent_at = buyer, now
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._unread:
            data = self._unread + data
        try:
            answer = cut_answer(data)
        except AnswerError:
            self.abort()
            return
        if answer is None:
            self._unread = data
            return
        self._unread = b""
        buyer, self.buyer = self.buyer, -1
        if buyer < 0 or answer.rest:
            # Bytes nobody asked for: whose answer they are can no longer be told.
            self.buyer = buyer
            self.abort()
            return
        self._burst.on_answer(buyer, answer)
        if answer.closes:
            self.abort()
        else:
            self._burst.use(self)

    def abort(self) -> None:
        """Breaks the connection off; its buyer, if any, tries again elsewhere."""
        assert self.transport is not None
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        buyer, self.buyer = self.buyer, -1
        self._burst.on_lost(self, buyer)


class Burst:
    """All buyers of a plan at once: each connection takes the next buyer as soon as its answer is in.

    After 429, 503, 504 or a broken connection a buyer repeats the same request with the same key, at most
    ``attempts_max`` sends a wave. Buyers refused SOLD_OUT wait for ``on_stock`` and then try again with the same key,
    about as many at a time as there are units, first refused first; those in line never need to. With
    ``offered_per_s`` they arrive one by one.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        count = len(plan.buyers)
        self._requests = [render_request(plan, buyer) for buyer in plan.buyers]
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._opened_anew = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_fresh = count  # Nobody may send before the start.
        self._arrived = 0
        self._ready: deque[int] = deque()
        self._hoping: deque[int] = deque()
        self._under_way = 0
        self._pending_second = 0
        self._closing = False
        self._first_status, self._first_reason = [0] * count, [""] * count
        self._status, self._reason = [0] * count, [""] * count
        self._first_sent, self._first_answered = [0.0] * count, [0.0] * count
        self._attempts, self._wave_attempts = [0] * count, [0] * count
        self._purchase_ids = [""] * count
        #: Place in line by buyer, for those who were told that they wait.
        self._places: dict[int, int] = {}
        self._over_for: set[int] = set()
        self._answered = self._accepted = self._shed = self._errors = 0
        self._error_kinds: Counter[str] = Counter()
        self.started_at = self._cpu_at_start = 0.0
        self._last_first_answer = 0.0
        #: Set when every buyer has had a first answer or was given up.
        self.first_wave_over = asyncio.Event()

    # Connections

    async def connect(self) -> None:
        """Opens every connection. Raises OSError when the gateway does not take them."""
        slots = asyncio.Semaphore(_OPENING_MAX)

        async def open_one() -> None:
            async with slots:
                await self._open()

        wanted = min(self._plan.connections, len(self._requests))
        await asyncio.gather(*(open_one() for _ in range(wanted)))

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), self._plan.host, self._plan.port)
        self._connections.add(connection)
        self.use(connection)

    async def _open_anew(self) -> None:
        await asyncio.sleep(_BROKEN_PAUSE_S)
        try:
            await self._open()
        except OSError as error:
            self._count_error(f"connect: {type(error).__name__}")
            self._replace()

    def _replace(self) -> None:
        if self._closing or self._opened_anew >= _REOPEN_FACTOR * self._plan.connections:
            return
        self._opened_anew += 1
        task = asyncio.get_running_loop().create_task(self._open_anew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_lost(self, connection: _Connection, buyer: int) -> None:
        """A connection broke; ``buyer`` was waiting on it, or -1."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if buyer >= 0:
            self._count_error("connection lost before the answer")
            self._repeat(buyer, _BROKEN_PAUSE_S, 0, "CONNECTION_LOST")
        self._replace()

    def abort_silent(self) -> None:
        """Breaks off connections whose answer is overdue."""
        latest = time.monotonic() - self._plan.answer_s_max
        for connection in [item for item in self._connections if item.buyer >= 0 and item.sent_at < latest]:
            connection.abort()

    async def close(self) -> None:
        """Closes every connection."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.abort()

    # Sending

    def start(self) -> None:
        """Presses Buy for everybody."""
        self.started_at = self._last_first_answer = time.monotonic()
        self._cpu_at_start = time.process_time()
        if self._plan.offered_per_s:
            self._arrive()
        else:
            self._next_fresh = 0
            self._wake()

    def _arrive(self) -> None:
        """Lets everybody send whose time has come, and comes back for the rest."""
        due = int((time.monotonic() - self.started_at) * self._plan.offered_per_s)
        last = min(due, len(self._requests))
        for buyer in range(self._arrived, last):
            self._first_sent[buyer] = self.started_at + buyer / self._plan.offered_per_s
            self._under_way += 1
            self._ready.append(buyer)
        self._arrived = last
        self._wake()
        if last < len(self._requests) and not self._closing:
            asyncio.get_running_loop().call_later(_ARRIVAL_S, self._arrive)

    def use(self, connection: _Connection) -> None:
        """Gives a free connection to the next buyer: repetitions that are due first, then those who have not sent."""
        if self._ready:
            buyer = self._ready.popleft()
        elif self._next_fresh < len(self._requests):
            buyer = self._next_fresh
            self._next_fresh += 1
            self._first_sent[buyer] = time.monotonic()
            self._under_way += 1
        else:
            self._idle.append(connection)
            return
        self._attempts[buyer] += 1
        self._wave_attempts[buyer] += 1
        connection.send(buyer, self._requests[buyer], time.monotonic())
        if self._plan.gone_share and is_among(buyer, self._plan.gone_share):
            asyncio.get_running_loop().call_later(_GONE_AFTER_S, self._leave, connection, buyer)

    def _leave(self, connection: _Connection, buyer: int) -> None:
        """A buyer breaks the connection off, if the answer has not come by now, and does not come back."""
        if connection.buyer == buyer and connection.transport is not None:
            connection.buyer = -1
            self._opened_anew -= 1
            self._settle(buyer, 0, "LEFT")
            connection.transport.abort()

    def _wake(self) -> None:
        while self._idle and (self._ready or self._next_fresh < len(self._requests)):
            self.use(self._idle.pop())

    def _due(self, buyer: int) -> None:
        self._ready.append(buyer)
        self._wake()

    def _repeat(self, buyer: int, delay_s: float, status: int, reason: str) -> None:
        if self._wave_attempts[buyer] >= self._plan.attempts_max:
            if self._plan.attempts_max > 1 or status != 429:
                self._count_error("attempts exhausted")
            self._settle(buyer, status, reason)
        else:
            asyncio.get_running_loop().call_later(delay_s, self._due, buyer)

    # Answers

    def on_answer(self, buyer: int, answer: Answer) -> None:
        """What an answer means for its buyer."""
        facts = facts_of(answer.body)
        if answer.status == 202:
            self._purchase_ids[buyer] = facts.purchase_id
            if facts.state == "WAITLISTED":
                self._places[buyer] = facts.waitlist_position or 0
            self._settle(buyer, 202, "")
        elif answer.status == 409:
            self._settle(buyer, 409, facts.reason)
        elif answer.status == 429:
            self._shed += 1
            self._repeat(buyer, retry_delay_ms(answer, facts) / 1000, 429, facts.reason)
        elif answer.status in (503, 504):
            self._count_error(f"{answer.status} {facts.reason}")
            self._repeat(buyer, retry_delay_ms(answer, facts) / 1000, answer.status, facts.reason)
        else:
            self._count_error(f"{answer.status} {facts.reason}")
            self._settle(buyer, answer.status, facts.reason)

    def _count_error(self, kind: str) -> None:
        self._errors += 1
        self._error_kinds[kind] += 1

    def _settle(self, buyer: int, status: int, reason: str) -> None:
        """The buyer's wave is over; ``status`` 202 and 409 are answers, all else means that it was given up."""
        self._under_way -= 1
        self._status[buyer], self._reason[buyer] = status, reason
        if buyer in self._over_for:
            self._pending_second -= 1
        else:
            self._over_for.add(buyer)
            self._first_status[buyer], self._first_reason[buyer] = status, reason
            self._first_answered[buyer] = time.monotonic()
            if status in (202, 409):
                self._answered += 1
                self._last_first_answer = self._first_answered[buyer]
            if len(self._over_for) == len(self._requests):
                self.first_wave_over.set()
        if status == 202:
            self._accepted += 1
        elif status == 409 and reason == "SOLD_OUT":
            self._hoping.append(buyer)

    def give_up_first_wave(self) -> None:
        """The time of the first wave is up: who has no answer never will."""
        for buyer in range(len(self._requests)):
            if buyer not in self._over_for:
                self._count_error("no answer in time")
        self._next_fresh = len(self._requests)
        self.first_wave_over.set()

    def on_stock(self, available: int) -> None:
        """So many units are on sale again: lets about as many of the refused try, once the first wave is over."""
        if not self.first_wave_over.is_set() or available <= 0:
            return
        tries = min(available + STOCK_MARGIN - self._pending_second, len(self._hoping))
        for _ in range(tries):
            buyer = self._hoping.popleft()
            self._wave_attempts[buyer] = 0
            self._pending_second += 1
            self._under_way += 1
            self._ready.append(buyer)
        self._wake()

    async def quiet(self, most_s: float) -> None:
        """Waits until no request is under way, at most ``most_s`` seconds."""
        deadline = time.monotonic() + most_s
        # No event: setting one for each answer would be paid for in the burst.
        while self._under_way and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    # Reporting

    def progress(self, event: str = "progress") -> Progress:
        """Counts so far."""
        return Progress(
            at=time.monotonic(),
            event=event,
            answered=self._answered,
            accepted=self._accepted - len(self._places),
            waitlisted=len(self._places),
            sold_out=len(self._hoping),
            shed_429=self._shed,
            errors=self._errors,
            in_flight=self._under_way,
            hoping=len(self._hoping),
            first_wave_over=self.first_wave_over.is_set(),
        )

    def results(self) -> LoadResults:
        """How it went for everybody."""
        buyers = [
            BuyerResult(
                self._first_status[i],
                self._first_reason[i],
                (self._first_answered[i] - self._first_sent[i]) * 1000 if i in self._over_for else 0.0,
                self._first_answered[i] - self.started_at if i in self._over_for else 0.0,
                self._status[i],
                self._reason[i],
                self._attempts[i],
                self._purchase_ids[i],
                i in self._places,
                self._places.get(i, 0),
            )
            for i in range(len(self._requests))
        ]
        return LoadResults(
            started_at=self.started_at,
            burst_wall_s=self._last_first_answer - self.started_at,
            shed_429=self._shed,
            errors=self._errors,
            error_kinds=dict(self._error_kinds),
            buyers=buyers,
            cpu_s=time.process_time() - self._cpu_at_start,
        )
