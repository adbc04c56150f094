"""What a sale came to: the figures of reports/sale.json, and which promises it broke, in words. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.audit.data import Look
from bench.load.plan import LoadResults, first_latencies
from bench.percentiles import percentile
from bench.sale.ending import Statement
from bench.sale.follow import Following
from bench.seeding import Seeded
from mesh.identity import purchase_id


@dataclass(frozen=True)
class SaleEnd:
    """Everything that is known after a sale."""

    seeded: Seeded
    load: LoadResults
    now: Following
    missing: str
    """What was not over when the time was up, or ""."""
    balance_rate_max_per_s: int
    look: Look
    audit_violations: Sequence[str]
    refunds_asked: int = 0
    statement: Statement | None = None
    """None when it could not be made, because the sale was not over."""

    @property
    def line(self) -> Counter[str]:
        """How many who joined the line were promoted, and so on, by state."""
        own = [sale.line for sale in self.look.sales if sale.sale_id == self.seeded.sale_id]
        return Counter(item.state for line in own for item in line)

    @property
    def wanted(self) -> int:
        """How many shares were wanted by somebody who could pay. Without a line whoever is refused tries again; with
        one only those want a share who had one at once or asked to wait, and whoever got a refund has had it."""
        buyers = self.seeded.buyers
        if not any(buyer.waits for buyer in buyers):
            return self.seeded.funded - self.now.refunded
        results = zip(buyers, self.load.buyers, strict=True)
        funded = sum(1 for buyer, told in results if told.status == 202 and self.seeded.can_pay(buyer.user_id))
        return funded - self.now.refunded


def figures(end: SaleEnd) -> dict[str, Any]:
    """The content of reports/sale.json: times in seconds or milliseconds as the names say, all else counts."""
    buyers, latencies = end.load.buyers, first_latencies(end.load.buyers)
    accepted_in_burst = sum(1 for item in buyers if item.first_status == 202 and not item.waitlisted)
    line = end.line
    # The first wave takes the stock as it was at the start. Whoever else is accepted while the burst lasts got a unit
    # that had come back from a failed payment; broken_promises checks that no more did.
    first_wave = min(accepted_in_burst, end.seeded.shares)
    return {
        "users": len(end.seeded.buyers),
        "shares": end.seeded.shares,
        "answered": len(latencies),
        "accepted": sum(1 for item in buyers if item.status == 202 and not item.waitlisted),
        "waitlisted": sum(1 for item in buyers if item.waitlisted),
        "sold_out": sum(1 for item in buyers if item.status == 409 and item.reason == "SOLD_OUT"),
        "shed_429": end.load.shed_429,
        "errors": end.load.errors,
        "burst_wall_s": round(end.load.burst_wall_s, 3),
        "p50_ms": round(percentile(latencies, 50), 1),
        "p99_ms": round(percentile(latencies, 99), 1),
        "max_ms": round(percentile(latencies, 100), 1),
        "accepted_p99_ms": round(percentile(first_latencies(buyers, 202), 99), 1),
        "accepted_first_wave": first_wave,
        "resold_in_burst": accepted_in_burst - first_wave,
        "confirmed": end.now.confirmed,
        "failed": end.now.failed_by_reason(),
        "promoted": line["PROMOTED"],
        "waiting_at_close": line["CLOSED"],
        "refunded": end.now.refunded,
        "statement": statement_figures(end.statement),
        "settle_wall_s": round(end.now.settle_wall_s, 3),
        "balance_rate_max_per_s": end.balance_rate_max_per_s,
        "audit_violations": list(end.audit_violations),
    }


def statement_figures(statement: Statement | None) -> dict[str, Any] | None:
    """The final statement as the report has it."""
    if statement is None:
        return None
    return {
        "final": statement.final,
        "sold": statement.sold_units,
        "captured_minor": statement.captured_minor,
        "refunded_minor": statement.refunded_minor,
        "won_nothing": dict(statement.non_wins),
    }


def broken_promises(end: SaleEnd) -> list[str]:
    """Each promise the sale broke, in words; empty when all is well."""
    told = figures(end)
    broken = [f"the sale was {end.missing}"] if end.missing else []
    if told["answered"] != told["users"]:
        broken.append(f"{told['users'] - told['answered']:,} of {told['users']:,} users were never answered")
    if told["errors"]:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(end.load.error_kinds.items()))
        broken.append(f"{told['errors']:,} errors: {kinds}")
    other = sum(1 for item in end.load.buyers if item.status == 409 and item.reason != "SOLD_OUT")
    if other:
        reasons = sorted({item.reason for item in end.load.buyers if item.status == 409})
        broken.append(f"{other:,} users were refused for another reason than SOLD_OUT: {', '.join(reasons)}")
    expected = min(end.seeded.shares, end.wanted)
    if told["confirmed"] != expected:
        broken.append(
            f"{told['confirmed']:,} shares were sold, but {expected:,} should have been"
            f" ({end.seeded.shares:,} shares, {end.wanted:,} wanted by users who can pay)"
        )
    came_back = sum(told["failed"].values()) - told["waiting_at_close"] + told["refunded"]
    if told["resold_in_burst"] > came_back:
        broken.append(f"{told['resold_in_burst']:,} more were accepted in the burst than there were shares")
    if end.now.dead_letters > 0:
        broken.append(f"{end.now.dead_letters} messages lie in the dead-letter queue")
    broken += _wrong_line(end)
    broken += _wrong_purchases(end)
    broken += _wrong_charges(end)
    broken += _wrong_statement(end)
    if end.audit_violations:
        broken.append(f"the audit found {len(end.audit_violations)} violations")
    return broken


def _wrong_purchases(end: SaleEnd) -> list[str]:
    """Whether each 202 was for the buyer's own purchase, and is a purchase in the books."""
    accepted = {}
    others = 0
    for buyer, result in zip(end.seeded.buyers, end.load.buyers, strict=True):
        if result.status == 202:
            own = str(purchase_id(buyer.user_id, end.seeded.sale_id, buyer.request_id))
            accepted[own] = buyer.user_id
            others += result.purchase_id != own
    broken = [f"{others} accepted users were told another purchase than their own"] if others else []
    recorded = {item.purchase_id for item in end.look.purchases if item.sale_id == end.seeded.sale_id}
    if missing := len(accepted.keys() - recorded):
        broken.append(f"{missing} accepted purchases are not in the books")
    if unasked := len(recorded - accepted.keys()):
        broken.append(f"{unasked} purchases are in the books whose buyers were never told 202")
    return broken


def _wrong_line(end: SaleEnd) -> list[str]:
    """Whether whoever asked to wait got a share or a place, was told which, and nobody else came into the line."""
    tickets = {
        item.reservation_id: item.ticket
        for sale in end.look.sales
        if sale.sale_id == end.seeded.sale_id
        for item in sale.line
    }
    refused = misplaced = 0
    waits = set()
    for buyer, told in zip(end.seeded.buyers, end.load.buyers, strict=True):
        refused += buyer.waits and told.status == 409
        if buyer.waits:
            waits.add(str(purchase_id(buyer.user_id, end.seeded.sale_id, buyer.request_id)))
        # Those before it can only become fewer, so the place is never beyond the ticket.
        misplaced += told.waitlisted and not 1 <= told.waitlist_position <= tickets.get(told.purchase_id, 0)
    broken = [f"{refused:,} users asked to wait and were refused"] if refused else []
    if misplaced:
        broken.append(f"{misplaced:,} users were told that they wait, and not which place they have in line")
    if unasked := len(tickets.keys() - waits):
        broken.append(f"{unasked:,} users came into the line who had not asked for it")
    if end.line["WAITING"]:
        broken.append(f"{end.line['WAITING']:,} still wait in line after the close")
    return broken


def _wrong_statement(end: SaleEnd) -> list[str]:
    """Whether the final statement says what was seen otherwise."""
    if end.statement is None:
        return ["there is no final statement"]
    confirmed, refunded = end.now.confirmed, end.now.refunded
    failed = end.now.failed_by_reason() | ({"REFUNDED": refunded} if refunded else {})
    wanted = Statement(
        final=True,
        sold_units=confirmed,
        sold_purchases=confirmed,
        captured_minor=(confirmed + refunded) * end.seeded.price_minor,
        refunded_minor=refunded * end.seeded.price_minor,
        unfinished=0,
        non_wins=failed,
        words=end.statement.words,
        listed=sum(failed.values()),
    )
    return [] if end.statement == wanted else [f"the statement says {end.statement}, but should {wanted}"]


def _wrong_charges(end: SaleEnd) -> list[str]:
    """Whether exactly those who own a share were charged, and exactly its price; whoever was refunded has its money
    back."""
    if end.now.refunded != end.refunds_asked:
        return [f"{end.refunds_asked:,} users asked for a refund, and {end.now.refunded:,} got it"]
    expected = dict(end.seeded.funds_minor)
    for item in end.look.purchases:
        if item.sale_id == end.seeded.sale_id and item.state == "CONFIRMED":
            expected[item.user_id] = expected.get(item.user_id, 0) - end.seeded.price_minor * item.quantity
    found = {item.user_id: item.balance_minor for item in end.look.accounts if item.user_id in expected}
    wrong = [user for user, amount in expected.items() if found.get(user) != amount]
    if not wrong:
        return []
    first = wrong[0]
    return [
        f"{len(wrong)} users were charged wrongly, {first} has {found.get(first)} cents instead of {expected[first]}"
    ]


def summary_lines(end: SaleEnd, rate_per_s: float) -> list[str]:
    """The figures in words, for people."""
    told = figures(end)
    failed = ", ".join(f"{count:,} {reason}" for reason, count in told["failed"].items()) or "none"
    second = told["accepted"] - told["accepted_first_wave"] - told["resold_in_burst"]
    by_hand = f" and {second:,} after it" if second else ""
    answers_per_s = told["answered"] / told["burst_wall_s"] if told["burst_wall_s"] else 0.0
    under = "everybody under" if told["max_ms"] < 1000 else "not everybody under"
    return [
        f"{told['answered']:,} of {told['users']:,} users answered in {told['burst_wall_s']:.2f} s"
        f" ({answers_per_s:,.0f}/s); {told['shed_429']:,} attempts shed with 429, {told['errors']:,} errors",
        f"from a user's first send to the answer: p50 {told['p50_ms']:.0f} ms, p99 {told['p99_ms']:.0f} ms,"
        f" max {told['max_ms']:.0f} ms: {under} a second",
        f"accepted {told['accepted']:,}: {told['accepted_first_wave']:,} in the first wave, and when units came back"
        f" {told['resold_in_burst']:,} during the burst{by_hand}; sold out {told['sold_out']:,}",
        f"in line {told['waitlisted']:,}: {told['promoted']:,} promoted, {told['waiting_at_close']:,} still waiting at"
        f" the close; {_tried_again(second)}",
        f"p99 of the accepted {told['accepted_p99_ms']:.0f} ms",
        f"confirmed {told['confirmed']:,} of {told['shares']:,} shares; failed: {failed}",
        f"settled in {told['settle_wall_s']:.1f} s; the Balance Service saw at most {told['balance_rate_max_per_s']:,}"
        f" purchases within a second (asked for: {rate_per_s:g}/s)",
        *_statement_lines(end.statement),
    ]


def _tried_again(by_hand: int) -> str:
    return f"{by_hand:,} got a share by trying again" if by_hand else "nobody had to try again by hand"


def _statement_lines(statement: Statement | None) -> list[str]:
    if statement is None:
        return []
    reasons = [f"   {count:,}: {statement.words.get(name) or name}" for name, count in statement.non_wins.items()]
    return [
        f"statement ({'final' if statement.final else 'not final'}): {statement.sold_units:,} shares sold,"
        f" {statement.captured_minor / 100:,.2f} EUR captured, {statement.refunded_minor / 100:,.2f} EUR refunded;"
        f" {sum(statement.non_wins.values()):,} purchases won nothing:",
        *reasons,
    ]
