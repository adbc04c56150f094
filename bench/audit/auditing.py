"""Checks the promises I1 to I8 over all sales: `python -m bench.audit`. Harmless, and right in the middle of a sale.

Looks through the services' RPCs only. What looks broken is looked at again, and counts only if it stays: things of
three databases are read one after the other while the sale goes on. Exit code 0: every promise kept; 1: one is broken,
or the system could not be looked at.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import uvloop

from bench.audit.data import Look
from bench.audit.fetch import look
from bench.audit.rules import UNFINISHED, check, is_at_rest, persisting, sales_in_flight
from bench.audit.violation import Violation
from bench.clients import Clients, open_clients
from mesh.errors import DomainError
from stack import environment
from stack.errors import StackError

#: Pause before looking again at what looks broken, seconds.
_PAUSE_S = 1.0
#: Violations printed of one promise; their number is printed whatever it is.
_SHOWN_MAX = 5
PROMISES = {
    "I1": "never oversold",
    "I2": "shares and one capture, or neither",
    "I3": "the books balance",
    "I4": "nothing accepted is stuck",
    "I5": "one request, one purchase",
    "I6": "stock adds up",
    "I7": "no unit is lost to everybody",
    "I8": "first come, first served",
}


@dataclass(frozen=True)
class Findings:
    """What an audit found: the last look, and what was broken in every look."""

    look: Look
    violations: tuple[Violation, ...]
    took_s: float


async def audit(clients: Clients, settlement_rate_per_s: float = 500.0) -> Findings:
    """Audits everything there is. Takes one look when nothing looks broken; else as many, a second apart, as the most
    patient of the rules still broken asks for (at most about 40 s). Raises DomainError when a service stays away."""
    begun = time.monotonic()
    seen = await look(clients, settlement_rate_per_s)
    suspected = check(seen)
    first_seen = time.monotonic()
    while suspected and time.monotonic() - first_seen < max(item.patience_s for item in suspected):
        await asyncio.sleep(_PAUSE_S)
        seen = await look(clients, settlement_rate_per_s)
        suspected = persisting(suspected, check(seen))
    return Findings(seen, tuple(suspected), time.monotonic() - begun)


def figures(seen: Look) -> dict[str, str]:
    """What each promise was checked on, in words."""
    states = Counter(item.state for item in seen.purchases)
    sold = sum(sale.book.sold for sale in seen.sales)
    total = sum(sale.total for sale in seen.sales)
    captured = sum(1 for item in seen.holds if item.state == "CAPTURED")
    in_flight = sales_in_flight(seen)
    at_rest = sum(1 for sale in seen.sales if is_at_rest(sale, in_flight))
    ended = states["FAILED"] + states["CANCELLED"]
    refunded = f", {states['REFUNDED']:,} refunded" if states["REFUNDED"] else ""
    in_line = f", {states['WAITLISTED']:,} in line" if states["WAITLISTED"] else ""
    line = Counter(item.state for sale in seen.sales for item in sale.line)
    unfinished = sum(states[state] for state in UNFINISHED)
    parked = f", {states['PARKED']} parked for an operator" if states["PARKED"] else ""
    available = sum(sale.gate_after.available for sale in seen.sales if sale.gate_after is not None)
    return {
        "I1": f"{sold:,} of {total:,} shares sold in {len(seen.sales)} sales",
        "I2": f"{states['CONFIRMED']:,} confirmed with {captured:,} captures{refunded}, {ended:,} failed or cancelled"
        " without",
        "I3": f"{len(seen.accounts):,} accounts, {sum(item.held_sum_minor for item in seen.totals):,} cents held",
        "I4": f"{len(seen.purchases):,} purchases, {unfinished:,} unfinished{in_line}{parked}",
        "I5": f"{len(seen.purchases):,} ids recomputed, reservations compared",
        "I6": f"{at_rest} sales at rest compared gate to book, {len(seen.sales) - at_rest} not at rest",
        "I7": f"{available:,} units on sale in the gate",
        "I8": f"{line['PROMOTED']:,} promoted in the order of their tickets, {line['LEFT']:,} left,"
        f" {line['CLOSED']:,} waited in vain, {line['WAITING']:,} waiting",
    }


def verdict_lines(findings: Findings) -> list[str]:
    """One line for each promise, with its figures, and what was found broken."""
    lines = []
    told = figures(findings.look)
    for promise, meaning in PROMISES.items():
        broken = [item for item in findings.violations if item.promise == promise]
        mark = f"BROKEN, {len(broken)} found" if broken else "kept"
        lines.append(f"{promise} {meaning}: {mark} ({told[promise]})")
        lines += [f"   {item.subject}: {item.detail}" for item in broken[:_SHOWN_MAX]]
        if len(broken) > _SHOWN_MAX:
            lines.append(f"   and {len(broken) - _SHOWN_MAX} more")
    return lines


def settlement_rate(values: Mapping[str, str]) -> float:
    """The rate the workers settle at, purchases/s, as the stack was told."""
    return float(values.get("SETTLEMENT_RATE_PER_S") or 500)


async def run(values: Mapping[str, str]) -> int:
    """Audits the stack that ``values`` describe and prints the verdict; the exit code."""
    try:
        async with open_clients(values) as clients:
            findings = await audit(clients, settlement_rate(values))
    except DomainError as error:
        sys.stdout.write(f"the audit could not be done: {error.reason_name}: {error.message}\n")
        return 1
    sys.stdout.write("\n".join(verdict_lines(findings)) + "\n")
    count = len(findings.violations)
    verdict = "every promise is kept" if count == 0 else f"{count} violations"
    sys.stdout.write(f"audit: {verdict} ({findings.took_s:.1f} s)\n")
    return 1 if count else 0


def main() -> int:
    """The process."""
    try:
        values = environment.load()
    except StackError as error:
        sys.stderr.write(f"audit: {error}\n")
        return 1
    return uvloop.run(run(values))
