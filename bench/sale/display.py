"""Live progress of a sale: a table on a terminal, one plain line a second otherwise."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from bench.sale.follow import Following

_PLAIN_S = 1.0
_LIVE_PER_S = 5
_BAR_WIDTH = 40


def plain_line(now: Following, users: int, shares: int) -> str:
    """The state of the sale in one line."""
    stock = f"{now.stock.available:,}" if now.stock else "-"
    waiting = f"{now.stock.waiting:,}" if now.stock else "-"
    progress = now.progress
    return (
        f"{max(0.0, time.monotonic() - now.started_at):6.1f} s  answered {progress.answered:,}/{users:,}"
        f"  accepted {progress.accepted:,}  in line {waiting}/{progress.waitlisted:,}  sold out {progress.sold_out:,}"
        f"  429s {progress.shed_429:,}  errors {progress.errors:,}  stock {stock}"
        f"  confirmed {now.confirmed:,}/{shares:,}  settled {now.settled:,}  queued {now.queued_messages:,}"
    )


class Display:
    """Shows a sale while it runs. Used as a context manager; ``update`` may be called as often as one likes."""

    def __init__(self, users: int, shares: int, out: TextIO = sys.stdout) -> None:
        self._users, self._shares, self._out = users, shares, out
        self._last_line = 0.0
        console = Console(file=out)
        self._live = Live(console=console, refresh_per_second=_LIVE_PER_S) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, now: Following) -> None:
        """Shows the present state, if it is time for it."""
        if self._live is not None:
            self._live.update(self._table(now))
        elif time.monotonic() - self._last_line >= _PLAIN_S:
            self._last_line = time.monotonic()
            self._out.write(plain_line(now, self._users, self._shares) + "\n")
            self._out.flush()

    def _table(self, now: Following) -> Table:
        progress = now.progress
        available, waiting = (now.stock.available, now.stock.waiting) if now.stock else (0, 0)
        table = Table.grid(padding=(0, 2))
        for label, value, total in (
            ("answered", progress.answered, self._users),
            ("accepted", progress.accepted, self._users),
            ("refused, sold out", progress.sold_out, self._users),
            ("waiting in line", waiting, max(progress.waitlisted, 1)),
            ("stock left", available, self._shares),
            ("settled", now.settled, max(now.purchases, 1)),
            ("confirmed", now.confirmed, self._shares),
        ):
            bar = ProgressBar(total=total, completed=min(value, total), width=_BAR_WIDTH)
            table.add_row(label, bar, f"{value:,} / {total:,}")
        queued = f"{now.queued_messages:,} messages" if now.queued_messages >= 0 else "RabbitMQ is away"
        shed = f"{progress.shed_429:,} shed with 429, {progress.errors:,} errors"
        table.add_row("settlement queue", queued, f"{now.unfinished:,} purchases")
        table.add_row("attempts", shed, f"{max(0.0, time.monotonic() - now.started_at):.1f} s")
        return table
