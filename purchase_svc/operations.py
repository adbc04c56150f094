"""What an operator does about dead letters and parked purchases. Told in plain lines, as it happens.

Each command returns whether all that was asked for is done, and raises UNAVAILABLE when the broker or the database is
away.
"""

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

from mesh.errors import reason_name
from mesh.postgres import Pool, open_pool
from mesh.transport import PLAINTEXT, Transport
from purchase_svc.dead_letter_box import open_dead_letters
from purchase_svc.pacing import Pace, TokenBucket
from purchase_svc.parked import ParkedPurchases, Verdicts
from purchase_svc.parked_book import ParkedBook
from purchase_svc.plain_table import table
from purchase_svc.purchase_book import PurchaseBook
from purchase_svc.replaying import Replaying
from purchase_svc.settlement_book import SettlementBook
from purchase_svc.settlement_publisher import SettlementPublisher
from purchase_svc.settlement_queue import DEAD_BYTES_MAX, DEAD_LENGTH_MAX
from purchase_svc.settlement_services import open_services
from purchase_svc.settlement_settings import SettlementSettings

Say = Callable[[str], None]

#: Letters, purchases and verdicts shown at most.
SHOWN_MAX = 100
#: Purchase ids shown of one letter, and how many on a line; all of them are in the worker's log.
_IDS_SHOWN_MAX, _IDS_PER_LINE = 12, 3
#: Purchases replayed by one command without ids, and in one step.
_REPLAYED_MAX, _STEP = 10_000, 250
_PUBLISHER = "operator"


async def show_dead_letters(settings: SettlementSettings, say: Say) -> bool:
    """Lists the oldest dead letters and leaves them where they are."""
    async with open_dead_letters(settings.amqp_url) as box:
        letters = [letter async for letter, _ in box.letters(SHOWN_MAX)]
        count = max(box.count, len(letters))
    full = count >= DEAD_LENGTH_MAX or sum(len(letter.body) for letter in letters) >= DEAD_BYTES_MAX
    say(f"{_counted(count, 'dead letter')}{', FULL: further ones wait in the 30 s retry queue' if full else ''}")
    rows = [
        (str(place), _time(letter.first_seen), _partition(letter.partition), f"{len(letter.body):,}", letter.reason)
        for place, letter in enumerate(letters, 1)
    ]
    heads = ("", "first seen (UTC)", "partition", "bytes", "reason")
    lines = table(heads, rows, right=(0, 2, 3))
    for line in lines[: 1 if letters else 0]:
        say(line)
    for line, letter in zip(lines[1:], letters, strict=True):
        say(line)
        for ids in _id_lines(letter.purchase_ids):
            say(f"      {ids}")
    _say_more(count - len(letters), say)
    return True


async def replay_dead_letters(settings: SettlementSettings, say: Say, most: int) -> bool:
    """Sends up to ``most`` of the oldest dead letters to their partitions again, each once; tells which ones stay."""
    replayed, stay, place = 0, 0, 0
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_open_pool(settings))
        publisher = await stack.enter_async_context(SettlementPublisher(settings.amqp_url, name=_PUBLISHER))
        replaying = Replaying(PurchaseBook(pool), SettlementBook(pool), publisher)
        box = await stack.enter_async_context(open_dead_letters(settings.amqp_url))
        async for letter, outcome in replaying.replay_from(box, most):
            place += 1
            replayed += outcome.purchases
            stay += bool(outcome.why_stays)
            if outcome.why_stays and stay <= SHOWN_MAX:
                say(f"letter {place} of partition {_partition(letter.partition)} stays: {outcome.why_stays}")
        left = box.count - most
    say(f"{_counted(replayed, 'purchase')} queued again, {_counted(stay, 'dead letter')} could not be replayed in full")
    if left > 0:
        say(f"{_counted(left, 'dead letter')} not looked at")
    return stay == 0


async def show_parked(settings: SettlementSettings, say: Say) -> bool:
    """Lists the purchases that are PARKED, the oldest first."""
    async with _open_pool(settings) as pool:
        book = ParkedBook(pool)
        found, count = await book.list_oldest(SHOWN_MAX), await book.count()
    say(_counted(count, "parked purchase"))
    rows = [
        (
            str(each.purchase_id),
            each.user_id,
            str(each.sale_id),
            reason_name(each.reason),
            str(each.attempts),
            _time(each.update_time),
        )
        for each in found
    ]
    lines = table(("purchase", "user", "sale", "reason", "attempts", "since (UTC)"), rows, right=(4,))
    for line in lines if rows else ():
        say(line)
    _say_more(count - len(found), say)
    return True


async def replay_parked(
    settings: SettlementSettings, say: Say, ids: Sequence[uuid.UUID], transport: Transport = PLAINTEXT
) -> bool:
    """Lets the workers try these again, or all that are PARKED now when no ids are given."""
    async with (
        _open_parked(settings, transport) as (parked, book),
        SettlementPublisher(settings.amqp_url, name=_PUBLISHER) as publisher,
    ):
        wanted = list(ids) or [each.purchase_id for each in await book.list_oldest(_REPLAYED_MAX)]
        done, all_queued, well = 0, True, True
        for some in _steps(wanted, _STEP):
            verdicts, queued = await parked.replay(some, publisher)
            all_queued = all_queued and queued
            done += sum(not verdict for verdict in verdicts.values())
            well = _say_verdicts(verdicts, say) and well
        left = await book.count() if not ids else 0
    later = "" if all_queued else "; the message broker is away, so the sweeper queues them when it is back"
    say(f"{_counted(done, 'purchase')} on the way again{later}")
    if left:
        say(f"{_counted(left, 'purchase')} still or again parked")
    return well


async def fail_parked(
    settings: SettlementSettings, say: Say, ids: Sequence[uuid.UUID], transport: Transport = PLAINTEXT
) -> bool:
    """Ends these as FAILED, each only after its hold is closed and its units are given back."""
    pace = Pace(settings.rate_per_s, settings.burst)
    done, well = 0, True
    async with _open_parked(settings, transport) as (parked, _):
        for some in _steps(ids, pace.batch_max):
            verdicts = await parked.fail(some)
            done += sum(not verdict for verdict in verdicts.values())
            well = _say_verdicts(verdicts, say) and well
    say(f"{_counted(done, 'purchase')} failed, with nothing held or reserved")
    return well


@asynccontextmanager
async def _open_parked(
    settings: SettlementSettings, transport: Transport
) -> AsyncIterator[tuple[ParkedPurchases, ParkedBook]]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_open_pool(settings))
        services = await stack.enter_async_context(open_services(settings, transport))
        bucket = TokenBucket(pool, Pace(settings.rate_per_s, settings.burst))
        book = ParkedBook(pool)
        yield ParkedPurchases(book, PurchaseBook(pool), SettlementBook(pool), services, bucket), book


@asynccontextmanager
async def _open_pool(settings: SettlementSettings) -> AsyncIterator[Pool]:
    async with open_pool(settings.database_url, name="operator", size=1) as pool:
        yield pool


def _steps(ids: Sequence[uuid.UUID], size: int) -> Iterator[Sequence[uuid.UUID]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _say_verdicts(verdicts: Verdicts, say: Say) -> bool:
    """Tells what was not done and why; whether all was done."""
    refused = {each: verdict for each, verdict in verdicts.items() if verdict}
    for each, verdict in refused.items():
        say(f"{each}: {verdict}")
    return not refused


def _say_more(more: int, say: Say) -> None:
    if more > 0:
        say(f"and {more:,} more")


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _partition(partition: int | None) -> str:
    return "?" if partition is None else f"{partition:02}"


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment else "?"


def _id_lines(ids: Sequence[uuid.UUID]) -> Iterator[str]:
    """A letter's purchase ids, a few on each line."""
    shown = ids[:_IDS_SHOWN_MAX]
    for start in range(0, len(shown), _IDS_PER_LINE):
        yield " ".join(map(str, shown[start : start + _IDS_PER_LINE]))
    if len(ids) > len(shown):
        yield f"and {len(ids) - len(shown)} more purchases"
