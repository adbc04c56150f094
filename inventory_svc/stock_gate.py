"""The gate: the counts and records in Redis that decide who gets a unit. lua/prelude.lua tells the keys.

Every script acts only on a calibration that is current (made for this run of the server, complete, in service) and
otherwise changes nothing. The gate decides; it makes nothing durable: that is the reservation book's part.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from flashsale.common.v1.error_reason_pb2 import ErrorReason
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from inventory_svc.sale import SaleTerms, Stock, Wish, recalibrating
from mesh.errors import DomainError
from mesh.logs import get_logger

log = get_logger(__name__)

#: Most wishes or ids in one script: about a millisecond of Redis's one thread.
SCRIPT_ITEMS_MAX = 250
#: Most that wait for the units of one sale, unless told otherwise.
WAITING_MAX = 1_000_000
#: Fields written at once while a calibration is loaded.
LOAD_CHUNK = 1_000
#: What a dead recalibrator has loaded goes away by itself after this, seconds.
_LOADED_KEPT_S = 600
#: Channel on which scripts tell the sale whose stock is to be read at once (lua/prelude.lua).
_EDGES = "inventory:edges"
_EDGE_WAIT_S = 0.5
_LUA = Path(__file__).parent / "lua"

_encode = msgspec.msgpack.Encoder().encode
_NONE: frozenset[int] = frozenset()
_REASONS = {
    "G": ErrorReason.ERROR_REASON_UNSPECIFIED,
    "A": ErrorReason.ERROR_REASON_UNSPECIFIED,
    "C": ErrorReason.ERROR_REASON_REQUEST_ID_REUSED,
    "L": ErrorReason.ERROR_REASON_RESERVATION_RELEASED,
    "N": ErrorReason.ERROR_REASON_SALE_NOT_OPEN,
    "P": ErrorReason.ERROR_REASON_PURCHASE_LIMIT_EXCEEDED,
    "U": ErrorReason.ERROR_REASON_USER_LIMIT_REACHED,
    "O": ErrorReason.ERROR_REASON_SOLD_OUT,
    "W": ErrorReason.ERROR_REASON_UNSPECIFIED,
    "F": ErrorReason.ERROR_REASON_WAITLIST_FULL,
}


class Level(NamedTuple):
    """What a script left behind: available units, and how many wait. While anybody waits the units are theirs."""

    available: int
    waiting: int


@dataclass(frozen=True)
class GateAnswer:
    """What the gate decided for some wishes of one sale, in their order.

    A reason of 0 is a grant, now or earlier, or a place in line for those at the places ``in_line``; either counts only
    once its row is committed under ``epoch``.
    """

    epoch: int
    level: "Level"
    reasons: tuple[int, ...]
    in_line: frozenset[int] = frozenset()


@dataclass(frozen=True)
class GatePromotion:
    """Who of those it was asked about has units by the gate; they count once that is committed under ``epoch``."""

    epoch: int
    level: Level
    reservation_ids: list[str]


@dataclass(frozen=True)
class Overdue:
    """Grants and joinings whose row is not known to be committed; ``promoted`` are those out of the line."""

    epoch: int
    wishes: list[Wish]
    promoted: frozenset[str]


@dataclass(frozen=True)
class Change:
    """Someone came to hold units or to wait (``request_id`` is set), or no longer does (it is None)."""

    reservation_id: str
    request_id: str | None


@dataclass(frozen=True)
class Observation:
    """A reading and what leads to it from an earlier one. ``changes`` is None when the earlier one is too old."""

    stock: Stock
    position: int
    changes: tuple[Change, ...] | None


@dataclass(frozen=True)
class CalibrationCounts:
    """What a calibration puts into service."""

    available: int
    reserved: int
    sold: int
    records: int
    users: int
    waiting: int = 0


def gate_key(sale_id: str) -> str:
    """The key of a sale's gate; all its other keys have the same hash tag."""
    return f"inventory:{{{sale_id}}}:gate"


def _named(sale_id: str, name: str, epoch: int) -> str:
    return f"inventory:{{{sale_id}}}:{name}:{epoch}"


def record_of(state_letter: str, wish: Wish) -> str:
    """The gate's record of a reservation: state R, S, L, W or P and the contents that a repetition must match."""
    return f"{state_letter}{wish.quantity}\n{wish.user_id}\n{wish.request_id}"


def wish_of(reservation_id: str, sale_id: str, record: str) -> Wish:
    """The contents of a gate's record."""
    quantity, user_id, request_id = record[1:].split("\n", 2)
    return Wish(reservation_id, sale_id, user_id, request_id, int(quantity))


def _change_of(entry: bytes) -> Change:
    text = entry.decode()
    return Change(text[1:37], text[37:] if text[0] == "+" else None)


class StockGate:
    """The gates of all sales on one Redis.

    Every method raises UNAVAILABLE when Redis is away or answers with an error: what was sent may have been done,
    so it must be repeatable, and is. Those that need a current calibration raise STOCK_RECALIBRATING without one.
    """

    def __init__(self, redis: "Redis", *, waiting_max: int = WAITING_MAX) -> None:
        self._redis = redis
        self._waiting_max = waiting_max
        prelude = (_LUA / "prelude.lua").read_text()
        self._scripts = {
            path.stem: redis.register_script(prelude + path.read_text())
            for path in sorted(_LUA.glob("*.lua"))
            if path.stem != "prelude"
        }

    async def _call(self, script: str, sale_id: str, *arguments: Any) -> Any:
        try:
            return await self._scripts[script](keys=[gate_key(sale_id)], args=arguments)
        except RedisError as error:
            raise _away(error) from error

    async def _call_current(self, script: str, sale_id: str, *arguments: Any) -> Any:
        answer = await self._call(script, sale_id, *arguments)
        if answer[0] == 0:
            raise recalibrating(sale_id)
        return answer

    async def reserve(self, sale_id: str, wishes: Sequence[Wish]) -> GateAnswer:
        """Takes units for up to 250 wishes of the sale, each decided by itself and in order; those that may wait join
        the line when they find too few, or others in it."""
        assert 0 < len(wishes) <= SCRIPT_ITEMS_MAX
        packed = _encode([(w.reservation_id, w.user_id, w.request_id, w.quantity, w.joins) for w in wishes])
        epoch, *level, text = await self._call_current("reserve", sale_id, packed, self._waiting_max)
        letters = text.decode()
        assert len(letters) == len(wishes)
        in_line = frozenset(place for place, letter in enumerate(letters) if letter == "W") if "W" in letters else _NONE
        return GateAnswer(epoch, Level(*level), tuple(_REASONS[letter] for letter in letters), in_line)

    async def move(
        self,
        sale_id: str,
        *,
        sold: bool,
        epoch_min: int,
        reservation_ids: Sequence[str],
        promoted_ids: Sequence[str] = (),
    ) -> Level:
        """Follows a committed sale (``sold``) or release of up to 250 reservations, whose units up to 250 promoted ones
        have in the same step.

        ``epoch_min`` is the sale's epoch as SQL had it after that commit: an older calibration may be replaced by one
        that was counted before the commit, so it raises STOCK_RECALIBRATING and the move must be repeated; as it must
        when a move that comes before it has not been made.
        """
        assert 0 < len(reservation_ids) <= SCRIPT_ITEMS_MAX
        assert len(promoted_ids) <= SCRIPT_ITEMS_MAX
        kind, released, promoted = "S" if sold else "L", _encode(list(reservation_ids)), _encode(list(promoted_ids))
        _, *level = await self._call_current("move", sale_id, kind, epoch_min, released, 0, promoted)
        return Level(*level)

    async def give_back(self, sale_id: str, epoch: int, reservation_ids: Sequence[str]) -> Level:
        """Frees up to 250 grants that committed rows say will never count.

        Raises STOCK_RECALIBRATING when the calibration they were granted under is gone: they went with it.
        """
        assert 0 < len(reservation_ids) <= SCRIPT_ITEMS_MAX
        ids = _encode(list(reservation_ids))
        _, *level = await self._call_current("move", sale_id, "L", epoch, ids, 1, _encode([]))
        return Level(*level)

    async def promote(self, sale_id: str, reservation_ids: Sequence[str], *, overtaking_allowed: bool) -> GatePromotion:
        """Takes available units for up to 250 who are first in line, given in its order."""
        assert 0 < len(reservation_ids) <= SCRIPT_ITEMS_MAX
        packed = _encode(list(reservation_ids))
        epoch, *level, letters = await self._call_current("promote", sale_id, packed, int(overtaking_allowed))
        served = [key for key, letter in zip(reservation_ids, letters.decode(), strict=True) if letter == "T"]
        return GatePromotion(epoch, Level(*level), served)

    async def prove(self, sale_id: str, epoch: int, reservation_ids: Sequence[str]) -> None:
        """Notes that the rows of these grants are committed."""
        try:
            await self._redis.zrem(_named(sale_id, "unproven", epoch), *reservation_ids)
        except RedisError as error:
            raise _away(error) from error

    async def prove_waiting(self, sale_id: str, epoch: int, reservation_ids: Sequence[str]) -> None:
        """Notes that the rows of these are committed, except of those who have been promoted since they joined, and
        unless the calibration they are of is gone."""
        await self._call("joined", sale_id, epoch, _encode(list(reservation_ids)))

    async def overdue(self, sale_id: str, *, age_min_ms: int) -> Overdue:
        """Up to 250 grants and joinings at least so old, by Redis's clock, whose row is not known to be committed."""
        epoch, *found = await self._call_current("overdue", sale_id, age_min_ms, SCRIPT_ITEMS_MAX)
        pairs = [(key.decode(), record.decode()) for key, record in zip(found[::2], found[1::2], strict=True)]
        promoted = frozenset(key for key, record in pairs if record[0] == "P")
        return Overdue(epoch, [wish_of(key, sale_id, record) for key, record in pairs], promoted)

    async def read(self, sale_id: str) -> Stock:
        """The stock at one moment."""
        return _stock(sale_id, await self._call_current("read", sale_id))

    async def current_epochs(self, sale_ids: Sequence[str]) -> list[int]:
        """The epoch of each sale's calibration; 0 when it is not current."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for sale_id in sale_ids:
                    await self._scripts["read"](keys=[gate_key(sale_id)], args=[], client=pipeline)
                return [answer[0] for answer in await pipeline.execute()]
        except RedisError as error:
            raise _away(error) from error

    async def observe(self, sale_id: str, epoch: int, position: int) -> Observation:
        """The stock at one moment with all changes of holders since an earlier observation's epoch and position."""
        answer = await self._call_current("watch", sale_id, epoch, position)
        changes = tuple(_change_of(entry) for entry in answer[9]) if answer[8] else None
        return Observation(_stock(sale_id, answer), answer[6], changes)

    async def scan_holders(self, sale_id: str, epoch: int) -> dict[str, str]:
        """Request ids of the reservations that hold units or wait under a calibration, by reservation id.

        Not of one moment: apply the changes since a position read before it. Empty when the calibration is replaced.
        """
        holders: dict[str, str] = {}
        try:
            async for key, record in self._redis.hscan_iter(_named(sale_id, "grants", epoch), count=LOAD_CHUNK):
                if key and record[:1] != b"L":
                    holders[key.decode()] = wish_of("", sale_id, record.decode()).request_id
        except RedisError as error:
            raise _away(error) from error
        return holders

    async def edges(self) -> AsyncGenerator[str, None]:
        """The sale of each stock that becomes or ceases to be zero, changes after a quiet time, or comes into service,
        or for which people begin or cease to wait, by whichever process, as it happens.

        Nothing is told of what happens while Redis is away; ends with UNAVAILABLE then.
        """
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            try:
                await subscription.subscribe(_EDGES)
                while True:
                    message = await subscription.get_message(timeout=_EDGE_WAIT_S)
                    if message is not None:
                        yield message["data"].decode()
            except RedisError as error:
                raise _away(error) from error

    async def close(self, sale_id: str) -> str:
        """Stops the gate until it is recalibrated; the run id of the server."""
        run_id: bytes = await self._call("close", sale_id)
        return run_id.decode()

    async def load(self, sale_id: str, name: str, epoch: int, fields: Mapping[str, str | int]) -> None:
        """Writes a part of a calibration that is not yet in service; ``name`` is grants or users."""
        key = _named(sale_id, name, epoch)
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(key, items=[part for pair in fields.items() for part in pair])
                pipeline.expire(key, _LOADED_KEPT_S)
                await pipeline.execute()
        except RedisError as error:
            raise _away(error) from error

    async def switch(
        self, sale_id: str, *, run_id: str, epoch: int, counts: CalibrationCounts, terms: SaleTerms, is_open: bool
    ) -> bool:
        """Puts a loaded calibration into service. False when it is out of date or incomplete; nothing changed then."""
        arguments = (counts.available, counts.reserved, counts.sold, terms.total, int(is_open))
        limits = (terms.per_user_limit, terms.per_purchase_limit)
        # The sentinel is one field more in each.
        lengths = (counts.records + 1, counts.users + 1)
        return bool(await self._call("switch", sale_id, run_id, epoch, *lengths, *arguments, *limits, counts.waiting))


def _stock(sale_id: str, answer: Sequence[int]) -> Stock:
    epoch, available, reserved, sold, total, is_open, changes, waiting = answer[:8]
    return Stock(sale_id, available, reserved, sold, total, epoch, bool(is_open), changes, waiting)


def _away(error: RedisError) -> DomainError:
    if isinstance(error, ResponseError):
        # Out of memory, read-only, misconfigured, or a fault in a script: refuse, and leave a trace of which it was.
        log.error("redis refused a command", error=str(error))
    return DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the stock gate is away")
