"""The promises I1 to I6 and I8 counted a second time, by other means than the audit's: SQL and Redis, at rest."""

import hashlib
from collections.abc import Mapping
from typing import Any

import psycopg
import redis


class Recount:
    """Looks into the three databases of a stack as their auditor, and into Redis as its administrator."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._admin = environment["POSTGRES_ADMIN_URL"].rpartition("/")[0]
        self._auditor = environment["POSTGRES_AUDITOR_URL"].rpartition("/")[0]
        self.redis_url = environment["REDIS_URL"]

    def database_url(self, database: str) -> str:
        """The administrator's URL of a service's database."""
        return f"{self._admin}/{database}"

    def rows(self, database: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query of one database gives."""
        with psycopg.connect(f"{self._auditor}/{database}") as conn:
            conn.read_only = True
            return conn.execute(query.encode(), parameters).fetchall()

    def gate(self, sale_id: str) -> dict[str, str]:
        """The fields of a sale's gate."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return dict(client.hgetall(f"inventory:{{{sale_id}}}:gate"))

    def shares(self, sale_id: str, total: int) -> None:
        """I1: every number of the sale is in range and has one owner, and the owner is sold."""
        owned = self.rows(
            "inventory",
            "SELECT s.share_number, r.state, r.quantity FROM share_numbers s JOIN reservations r USING (reservation_id)"
            " WHERE s.sale_id = %s",
            sale_id,
        )
        numbers = [number for number, _, _ in owned]
        assert len(numbers) == len(set(numbers)) <= total
        assert all(1 <= number <= total for number in numbers)
        assert {state for _, state, _ in owned} <= {"SOLD"}

    def outcomes(self, sale_id: str) -> None:
        """I2 and I4: shares and one capture, or neither, or a capture and its reversal; nothing unfinished."""
        purchases = self.rows(
            "purchase",
            "SELECT purchase_id, user_id, state, quantity, amount_minor, share_numbers FROM purchases"
            " WHERE sale_id = %s",
            sale_id,
        )
        captures = dict(
            self.rows(
                "balance",
                "SELECT regexp_replace(transfer_id, '^reversal:', ''), array_agg(amount_minor ORDER BY entry_id)"
                " FROM ledger_entries WHERE account = %s GROUP BY 1",
                f"sale:{sale_id}",
            )
        )
        charges = dict(
            self.rows(
                "balance",
                "SELECT transfer_id, account FROM ledger_entries WHERE kind = 'CAPTURE' AND amount_minor < 0",
            )
        )
        owned = dict(
            self.rows(
                "inventory",
                "SELECT reservation_id, array_agg(share_number ORDER BY share_number) FROM share_numbers"
                " WHERE sale_id = %s AND reservation_id IS NOT NULL GROUP BY 1",
                sale_id,
            )
        )
        for purchase_id, user_id, state, quantity, amount, numbers in purchases:
            assert state in ("CONFIRMED", "FAILED", "CANCELLED", "REFUNDED", "WAITLISTED")
            if state == "REFUNDED":
                assert captures.pop(str(purchase_id)) == [amount, -amount]
                assert charges[str(purchase_id)] == f"user:{user_id}"
                assert numbers == []
            elif state == "CONFIRMED":
                assert captures.pop(str(purchase_id)) == [amount]
                assert charges[str(purchase_id)] == f"user:{user_id}"
                assert owned.pop(purchase_id) == numbers
                assert len(numbers) == quantity
            else:
                assert numbers == []
        assert captures == {}
        assert owned == {}

    def books(self) -> None:
        """I3: the books of every currency sum to zero, and each account is the sum of its entries and holds."""
        sums = self.rows("balance", "SELECT sum(amount_minor) FROM ledger_entries GROUP BY currency_code")
        assert {int(total) for (total,) in sums} <= {0}
        wrong = self.rows(
            "balance",
            """SELECT a.user_id FROM accounts a
               LEFT JOIN (SELECT account, currency_code, sum(amount_minor) AS total FROM ledger_entries GROUP BY 1, 2) e
                      ON e.account = 'user:' || a.user_id AND e.currency_code = a.currency_code
               LEFT JOIN (SELECT user_id, currency_code, sum(amount_minor) AS total FROM holds
                          WHERE state = 'HELD' GROUP BY 1, 2) h
                      ON h.user_id = a.user_id AND h.currency_code = a.currency_code
               WHERE a.balance_minor <> coalesce(e.total, 0) OR a.held_minor <> coalesce(h.total, 0)
                  OR NOT (0 <= a.held_minor AND a.held_minor <= a.balance_minor)""",
        )
        assert wrong == []

    def identity(self, sale_id: str) -> None:
        """I5: one purchase for one (user, sale, request), under the UUIDv8 of the three."""
        rows = self.rows(
            "purchase",
            "SELECT purchase_id, user_id, sale_id::text, request_id FROM purchases WHERE sale_id = %s",
            sale_id,
        )
        namespace = bytes.fromhex("6f0d1b523f6e5c0e9a557c1f2f1d9b3a")
        assert len({row[1:] for row in rows}) == len(rows)
        for purchase_id, *parts in rows:
            name = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
            digest = hashlib.blake2b(namespace + name, digest_size=12).hexdigest()
            written = f"{sale_id[:8]}{digest}"
            # RFC 9562: digit 12 is the version, the upper bits of digit 16 the variant.
            variant = f"{int(written[16], 16) & 3 | 8:x}"
            assert purchase_id.hex == f"{written[:12]}8{written[13:16]}{variant}{written[17:]}"

    def stock(self, sale_id: str, total: int) -> None:
        """I6: at rest the gate's three counts, each counted anew from SQL, are the same and add up."""
        (counted,) = self.rows(
            "inventory",
            "SELECT coalesce(sum(quantity) FILTER (WHERE state = 'RESERVED'), 0)::int,"
            " coalesce(sum(quantity) FILTER (WHERE state = 'SOLD'), 0)::int FROM reservations WHERE sale_id = %s",
            sale_id,
        )
        gate = self.gate(sale_id)
        assert (int(gate["reserved"]), int(gate["sold"])) == counted
        assert int(gate["available"]) == total - sum(counted)
        assert int(gate["available"]) + int(gate["reserved"]) + int(gate["sold"]) == int(gate["total"]) == total

    def line(self, sale_id: str) -> None:
        """I8: nobody was promoted while somebody with an earlier ticket waited, no bigger request let by; who waits has
        no reservation, who was promoted has one, who left has a spent id; the line's own counts are right."""
        (passed,) = self.rows(
            "inventory",
            "SELECT count(*)::int FROM waitlist AS later JOIN waitlist AS earlier USING (sale_id)"
            " JOIN sales USING (sale_id) WHERE sale_id = %s AND later.state = 'PROMOTED'"
            " AND earlier.ticket < later.ticket"
            " AND (earlier.state = 'WAITING' OR earlier.decision_number > later.decision_number)"
            " AND NOT (overtaking_allowed AND earlier.quantity > later.quantity)",
            sale_id,
        )
        assert passed == (0,)
        states = self.rows(
            "inventory",
            "SELECT DISTINCT w.state, r.state FROM waitlist AS w LEFT JOIN reservations AS r USING (reservation_id)"
            " WHERE w.sale_id = %s",
            sale_id,
        )
        assert set(states) <= {
            ("WAITING", None),
            ("LEFT", "RELEASED"),
            ("CLOSED", "RELEASED"),
            *(("PROMOTED", state) for state in ("RESERVED", "SOLD", "RELEASED")),
        }
        (counted,) = self.rows(
            "inventory",
            "SELECT count(*)::int, coalesce(sum(quantity), 0)::int FROM waitlist WHERE sale_id = %s"
            " AND state = 'WAITING'",
            sale_id,
        )
        for table in ("sale_lines", "waitlist_blocks"):
            kept = (
                "SELECT coalesce(sum(waiting), 0)::int, coalesce(sum(waiting_units), 0)::int FROM {} WHERE sale_id = %s"
            )
            assert self.rows("inventory", kept.format(table), sale_id) == [counted]
        assert int(self.gate(sale_id)["waiting"]) == counted[0]
