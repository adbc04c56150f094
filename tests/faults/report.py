"""What the suite found: a line for each fault as it ends, a table of figures, reports/faults.json."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from tests.faults.faults import Fault

REPORT = Path(__file__).resolve().parents[2] / "reports" / "faults.json"


@dataclass(frozen=True)
class Result:
    """One sale under one fault."""

    name: str
    kind: str
    phase: str
    took_s: float
    effects: dict[str, int] = field(default_factory=dict)
    trouble: str = ""
    """Why the fault does not count, or ""."""
    recovery_s: dict[str, float] = field(default_factory=dict)
    attempts: int = 0
    purchases: int = 0
    promoted: int = 0
    left_line: int = 0
    refunded: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    blind_rounds: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it happened and no promise broke."""
        return not (self.trouble or self.violations)


class Report:
    """Gathers results and says each as it comes."""

    def __init__(self, seed: int, out: TextIO) -> None:
        self._seed = seed
        self._out = out
        self._results: list[Result] = []
        self._skipped: dict[str, str] = {}
        self._count = 0
        self._began = time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether every fault that was tried passed, and any was."""
        return bool(self._results) and all(result.passed for result in self._results)

    def begin(self, count: int) -> None:
        """Says what is to come."""
        self._count = count
        self._say(
            f"{count} faults, SEED={self._seed}: repeat one with make faults SEED={self._seed} ONLY='part of its name'"
        )

    def skipped(self, fault: Fault, why: str) -> None:
        """Notes a fault that this machine cannot have."""
        self._skipped[fault.name] = why
        self._say(f"        skipped  {fault.name}: {why}")

    def add(self, result: Result) -> None:
        """Notes a result."""
        self._results.append(result)
        recovery = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in result.recovery_s.items())
        mark = "ok    " if result.passed else "BROKEN" if result.violations else "FAILED"
        self._say(
            f"{len(self._results):3}/{self._count} {mark} {result.took_s:5.1f} s  {result.name:<36}"
            f" {result.purchases:4} purchases {result.attempts:4} answers"
            f" {sum(result.checked.values()):5} checks  {recovery}"
        )
        if result.trouble:
            self._say(f"        it did not happen: {result.trouble}")
        for violation in result.violations:
            self._say(f"        {violation}")

    def write(self) -> None:
        """Writes the report and prints the figures by kind."""
        figures = self.figures()
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(figures, indent=2) + "\n")
        self._say("")
        self._say(f"{'kind':<16}{'faults':>8}{'purchases':>11}{'checks':>9}{'broken':>8}  slowest recovery")
        for kind, row in figures["by_kind"].items():
            slowest = ", ".join(
                f"{what} {seconds:.1f} s" for what, seconds in sorted(row["slowest_recovery_s"].items())
            )
            self._say(
                f"{kind:<16}{row['faults']:>8}{row['purchases']:>11}{row['checks']:>9}{row['violations']:>8}  {slowest}"
            )
        self._say(
            f"{figures['promoted']:,} promoted out of lines, {figures['left_line']:,} left one,"
            f" {figures['refunded']:,} refunded"
        )
        verdict = (
            "every promise held"
            if self.passed
            else "BROKEN: " + ", ".join(result.name for result in self._results if not result.passed)
        )
        self._say(f"SEED={self._seed}, {figures['took_s']:.0f} s: {verdict}")

    def figures(self) -> dict:  # type: ignore[type-arg]
        """What faults.json holds."""
        by_kind: dict[str, dict] = {}  # type: ignore[type-arg]
        grouped: defaultdict[str, list[Result]] = defaultdict(list)
        for result in self._results:
            grouped[result.kind].append(result)
        for kind, results in grouped.items():
            slowest: dict[str, float] = {}
            for result in results:
                for what, seconds in result.recovery_s.items():
                    slowest[what] = max(slowest.get(what, 0.0), round(seconds, 2))
            by_kind[kind] = {
                "faults": len(results),
                "purchases": sum(result.purchases for result in results),
                "checks": sum(sum(result.checked.values()) for result in results),
                "violations": sum(len(result.violations) for result in results),
                "slowest_recovery_s": slowest,
            }
        checked: Counter[str] = Counter()
        for result in self._results:
            checked.update(result.checked)
        return {
            "seed": self._seed,
            "passed": self.passed,
            "took_s": round(time.monotonic() - self._began, 1),
            "faults": len(self._results),
            "skipped": self._skipped,
            "purchases_attempted": sum(result.attempts for result in self._results),
            **{
                name: sum(getattr(result, name) for result in self._results)
                for name in ("promoted", "left_line", "refunded")
            },
            "promises_checked": sum(checked.values()),
            "checked_by_promise": dict(sorted(checked.items())),
            "violations": sum(len(result.violations) for result in self._results),
            "by_kind": by_kind,
            "results": [asdict(result) for result in self._results],
        }

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
