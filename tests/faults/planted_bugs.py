"""Proves the suite: plants a bug, runs a fault, and insists that a promise is seen to break; `make faults-proven`.

Each bug is a change of a few words in a copy of the checkout, never in the checkout itself. ONLY chooses bugs by part
of their names.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_RUN_S_MAX = 420


@dataclass(frozen=True)
class Bug:
    """``edits`` are (file, text that is there once, text instead). ``fault`` is part of the name of what reveals it."""

    name: str
    fault: str
    edits: tuple[tuple[str, str, str], ...]


BUGS = (
    Bug(
        "a decrement without its record",
        "messages twice",
        (("inventory_svc/lua/reserve.lua", "  call_in_parts('HSET', gate.grants_key, grants)\n", ""),),
    ),
    Bug(
        "money captured before the share is assigned",
        "kill at settlement.held",
        (
            (
                "purchase_svc/settlement.py",
                "        owned = await self._assign(batch, held)\n",
                "        await self._services.capture_holds([each.purchase_id for each in held])\n"
                "        owned = await self._assign(batch, held)\n",
            ),
        ),
    ),
    Bug(
        "a message acked before its purchases are settled, and nobody who looks for what is lost",
        "kill at settlement.claimed",
        (
            (
                "purchase_svc/settlement_lane.py",
                "        self._deliveries.setdefault(delivery.partition, deque()).append(delivery)\n",
                "        self._deliveries.setdefault(delivery.partition, deque()).append(delivery)\n"
                "        self._early = asyncio.ensure_future(delivery._ack())\n"
                "        delivery._ack = lambda: asyncio.sleep(0)  # type: ignore[assignment,return-value]\n",
            ),
            (
                "purchase_svc/sweeper.py",
                '        await self._guard("lost", self._queue_lost)\n',
                "",
            ),
        ),
    ),
    Bug(
        "a recalibration that forgets reservations in flight",
        "redis wiped in burst",
        (
            (
                "inventory_svc/sql/reservation_book.sql",
                "request_id, quantity, state FROM reservations WHERE sale_id = %(sale_id)s\n",
                "request_id, quantity, state FROM reservations WHERE sale_id = %(sale_id)s AND state <> 'RESERVED'\n",
            ),
        ),
    ),
    Bug(
        "accounts read without FOR UPDATE",
        "messages twice",
        (("balance_svc/sql/accounts.sql", "FOR UPDATE OF a\n", "\n"),),
    ),
    Bug(
        "a repeated reservation takes its units again",
        "messages twice",
        (("inventory_svc/lua/reserve.lua", "  if record then\n", "  if record and false then\n"),),
    ),
    Bug(
        "a repeated hold is placed anew",
        "kill at settlement.held",
        (
            (
                "balance_svc/hold_batch.py",
                "        existing = self._holds.get(request.hold_id)\n        if existing is not None:",
                "        existing = self._holds.get(request.hold_id)\n        if existing is None and False:",
            ),
        ),
    ),
    Bug(
        "a repeated confirm finds no shares",
        "kill at settlement.assigned",
        (
            (
                "inventory_svc/reservation_book.py",
                "            if earlier:\n",
                "            if earlier and False:\n",
            ),
        ),
    ),
    Bug(
        "the epoch ignored by the insert",
        "asleep at inventory.granted",
        (
            (
                "inventory_svc/sql/reservation_book.sql",
                "AND epoch = %(epoch)s FOR SHARE",
                "AND %(epoch)s > 0 FOR SHARE",
            ),
        ),
    ),
    Bug(
        "FOR SHARE left out of the insert",
        "recalibrated while inserts are slow",
        (("inventory_svc/sql/reservation_book.sql", "AND epoch = %(epoch)s FOR SHARE", "AND epoch = %(epoch)s"),),
    ),
    Bug(
        "the run of Redis not looked at",
        "redis a second behind in burst",
        (
            (
                "inventory_svc/lua/prelude.lua",
                "if found[3] ~= '1' or found[1] ~= server_run_id() then",
                "if found[3] ~= '1' then",
            ),
        ),
    ),
    Bug(
        "a failed INSERT gives its units back at once",
        "inventory->postgres reset in a reply",
        (
            (
                "inventory_svc/reserving.py",
                "        except DomainError as error:\n            return dict.fromkeys(grants, error.reason)\n",
                "        except DomainError as error:\n"
                "            await self._give_back(sale_id, epoch, list(grants))\n"
                "            return dict.fromkeys(grants, error.reason)\n",
            ),
        ),
    ),
    Bug(
        "nobody queues what was never queued",
        "kill at purchase.publishing",
        (("purchase_svc/sweeper.py", '        await self._guard("unqueued", self._queue_unqueued)\n', ""),),
    ),
    Bug(
        "a cancel wins after the claim",
        "cancelled while being settled",
        (
            (
                "purchase_svc/sql/purchase.sql",
                "WHERE purchase_id = %(purchase_id)s AND state IN ('WAITLISTED', 'RESERVED')\n",
                "WHERE purchase_id = %(purchase_id)s AND state IN ('WAITLISTED', 'RESERVED', 'SETTLING')\n",
            ),
        ),
    ),
    Bug(
        "the last in line is promoted first",
        "messages twice",
        (
            (
                "inventory_svc/sql/waitlist.sql",
                "ORDER BY w.ticket\nLIMIT %(most)s\n",
                "ORDER BY w.ticket DESC\nLIMIT %(most)s\n",
            ),
        ),
    ),
    Bug(
        "whoever cancels in line is promoted all the same",
        "messages twice",
        (
            (
                "inventory_svc/releasing.py",
                "        reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED\n"
                "        freed[sale_id].leaving.append(reservation_id)\n",
                "        reasons[reservation_id] = ErrorReason.ERROR_REASON_UNSPECIFIED\n",
            ),
        ),
    ),
    Bug(
        "the gate does not follow a promotion",
        "messages twice",
        (("inventory_svc/lua/move.lua", "if #promoted > 0 then\n", "if #promoted > 0 and false then\n"),),
    ),
    Bug(
        "a recalibration that forgets the line",
        "redis wiped with a line",
        (
            (
                "inventory_svc/sql/reservation_book.sql",
                "request_id, quantity, state FROM waitlist\nWHERE sale_id = %(sale_id)s AND state = 'WAITING'\n",
                "request_id, quantity, state FROM waitlist\nWHERE sale_id = %(sale_id)s AND state = 'NONE'\n",
            ),
        ),
    ),
    Bug(
        "a refund gives the shares back and no money",
        "messages twice",
        (
            (
                "purchase_svc/refunder.py",
                "        money = await self._services.reverse_captures(ids)\n",
                "        money = {}\n",
            ),
            (
                "purchase_svc/refunder.py",
                "[key for key, answer in money.items() if answer.done]",
                "list(ids)",
            ),
        ),
    ),
    Bug(
        "a refund gives the shares back before the money",
        "kill at refunder.reversed",
        (
            (
                "purchase_svc/refunder.py",
                "        money = await self._services.reverse_captures(ids)\n",
                "        await self._services.release_reservations(ids, revoke_sold=True)\n"
                "        money = await self._services.reverse_captures(ids)\n",
            ),
        ),
    ),
    Bug(
        "winners are told sold out",
        "messages twice",
        (
            (
                "gateway/sold_out.py",
                "return mark not in self._fingerprints and mark not in self._sent and mark not in self._sent_before",
                "return True",
            ),
        ),
    ),
)


def _copy(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=_CHECKOUT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        source = _CHECKOUT / name
        if name and source.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (folder / ".venv").symlink_to(_CHECKOUT / ".venv")


def _plant(bug: Bug, folder: Path) -> None:
    for name, old, new in bug.edits:
        path = folder / name
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{bug.name}: {name} does not contain its text once; the bug is to be planted anew")
        path.write_text(text.replace(old, new))


def _caught(bug: Bug, folder: Path) -> str:
    """The first broken promise that the suite names, or ""."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": f"{folder}:{folder / 'gen'}",
        "ONLY": bug.fault,
        "SEED": os.environ.get("SEED") or "1",
    }
    done = subprocess.run(
        [str(folder / ".venv/bin/python"), "-m", "tests.faults"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_RUN_S_MAX,
        check=False,
    )
    broken = re.findall(r"^ +((?:I\d|answers|logs|fairness): .*)$", done.stdout, re.M)
    promises = [text for text in broken if text.startswith("I")]
    return (promises or [""])[0] if done.returncode == 1 else ""


def main() -> int:
    """Exit code 0: each bug broke a promise in a running sale and was seen to."""
    only = os.environ.get("ONLY", "")
    missed = 0
    for bug in BUGS:
        if only not in bug.name:
            continue
        folder = Path(tempfile.mkdtemp(prefix="flashsale-planted-"))
        try:
            _copy(folder)
            _plant(bug, folder)
            caught = _caught(bug, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        missed += not caught
        sys.stdout.write(f"{'caught' if caught else 'MISSED'}  {bug.name}\n        by {bug.fault}: {caught[:180]}\n")
        sys.stdout.flush()
    sys.stdout.write("every planted bug was caught\n" if not missed else f"{missed} planted bugs were missed\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
