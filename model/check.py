"""Checks the model of a purchase exhaustively: ``python -m model.check [RULE ...]``.

With all five rules, and those of the line, every promise must hold in every reachable state; with any one of them left
out a promise must break, and the shortest sequence that breaks it is printed in words. Arguments are rules (RULE1 ...
RULE5, LINE) or names of what is left out (R3_NO_EPOCH); without any, everything is checked. Exit code 0 only if all
came out so.

Needs spin and gcc. Everything is built in a temporary folder. Uses at most two processors and 3 GB for each.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_AT_ONCE = 2
_MEMORY_MB_MAX = 3_000
_SEARCH_S_MAX = 600
_DEPTH_MAX = 100_000
#: What makes a search incomplete, as the verifier says it.
_INCOMPLETE = ("max search depth too small", "out of memory", "memory limit", "hash array full", "interrupted")


@dataclass(frozen=True)
class Case:
    """One search: a model with its bounds, and what of a rule is left out of it (nothing: ``rule`` is empty)."""

    model: str
    title: str
    defines: tuple[str, ...] = ()
    rule: str = ""
    left_out: str = ""
    #: Looks for a run without an end instead of a broken promise.
    endless: bool = False

    @property
    def flags(self) -> list[str]:
        """The definitions for the model's preprocessor."""
        return [f"-D{each}" for each in (*self.defines, *([self.left_out] if self.left_out else []))]


@dataclass(frozen=True)
class Found:
    """What a search said. ``story`` is the failing sequence, empty when nothing fails."""

    case: Case
    states: int
    depth: int
    took_s: float
    complete: bool
    story: tuple[str, ...]

    @property
    def as_it_should_be(self) -> bool:
        """Nothing fails with all rules; with one left out the story ends in a broken promise."""
        if self.case.left_out:
            return bool(self.story) and self.story[-1].startswith("BROKEN")
        return self.complete and not self.story

    @property
    def verdict(self) -> str:
        """One phrase."""
        if not self.story:
            holds = "every run ends" if self.case.endless else "all promises hold"
            return holds if self.complete else "SEARCH NOT COMPLETE"
        broken = self.story[-1].removeprefix("BROKEN ").partition(":")[0]
        return f"{broken} breaks after {len(self.story) - 1} steps"


_ONE = ("USERS=1",)
_ONCE = ("REPEATS=0",)
_OVERLAP = ("ASKED=1", "RESTARTS=0", "REPEATS=0")
_CASES = (
    Case("gate", "1 share, Redis comes back behind"),
    Case("gate", "2 shares, Redis comes back behind", ("TOTAL=2",)),
    Case("gate", "1 share, two recalibrations at once", _OVERLAP),
    Case("saga", "one purchase, workers break off twice", (*_ONE, "BREAKS=2")),
    Case("saga", "2 users, 1 share", ("BREAKS=0", "LOSSES=0")),
    Case("saga", "2 users, 2 shares", ("BREAKS=0", "LOSSES=0", "TOTAL=2")),
    Case("line", "everybody asks once, Redis comes back", _ONCE),
    Case("line", "Bob asks twice, Redis stays", ("RESTARTS=0",)),
    Case("gate", "1 share, Redis comes back behind", endless=True),
    Case("saga", "one purchase, workers break off twice", (*_ONE, "BREAKS=2"), endless=True),
    Case("gate", "taking: SQL first, then Redis", rule="RULE1", left_out="R1_TAKE_SQL_FIRST"),
    Case("gate", "giving back: Redis first, then SQL", rule="RULE1", left_out="R1_GIVE_REDIS_FIRST"),
    Case("gate", "gives back whatever the record says", rule="RULE1", left_out="R1_NO_RECORD_CHECK"),
    Case("gate", "gives back whatever gate it finds", rule="RULE1", left_out="R1_NO_CURRENT_CHECK"),
    Case("gate", "a failed INSERT gives back by itself", rule="RULE2", left_out="R2_GIVE_BACK_ON_FAILURE"),
    Case("gate", "the reaper writes no tombstone", rule="RULE2", left_out="R2_NO_TOMBSTONE"),
    Case("gate", "the INSERT ignores the epoch", rule="RULE3", left_out="R3_NO_EPOCH"),
    Case("gate", "the INSERT compares it without FOR SHARE", rule="RULE3", left_out="R3_NO_SHARE_LOCK"),
    Case("gate", "counts first, or in the bump's statement", rule="RULE3", left_out="R3_COUNT_FIRST"),
    Case("gate", "counts before the bump is committed", _OVERLAP, rule="RULE3", left_out="R3_COUNT_BEFORE_COMMIT"),
    Case("gate", "scripts ignore the run id", rule="RULE3", left_out="R3_NO_RUN_ID"),
    Case("gate", "switches whatever has happened", ("ASKED=1", "REPEATS=0"), "RULE3", "R3_SWITCH_ANYWAY"),
    Case("gate", "an id once released is forgotten", rule="RULE4", left_out="R4_FORGET_RELEASED"),
    Case("saga", "a refused hold is forgotten", (*_ONE, "AT_THE_END"), "RULE4", "R4_FORGET_REFUSAL"),
    Case("saga", "a lapsed hold is forgotten", (*_ONE, "AT_THE_END"), "RULE4", "R4_FORGET_EXPIRY"),
    Case("saga", "a missing answer counts as a refusal", _ONE, "RULE4", "R4_GUESS"),
    Case("saga", "captures before the share is assigned", _ONE, "RULE5", "R5_CAPTURE_FIRST"),
    Case("saga", "a cancel wins after the claim", _ONE, "RULE5", "R5_CANCEL_LATE"),
    Case("saga", "settles without claiming", _ONE, "RULE5", "R5_NO_CLAIM"),
    Case("line", "newcomers are served while somebody waits", rule="LINE", left_out="W_NEWCOMERS"),
    Case("line", "joins whatever has become of the gate", rule="LINE", left_out="W_UNFENCED_JOIN"),
    Case("line", "leaving does not spend the id", rule="LINE", left_out="W_ID_NOT_SPENT"),
    Case("line", "leaving: Redis first, then SQL", rule="LINE", left_out="W_LEAVE_REDIS_FIRST"),
    Case("line", "the swap looks at no record", _ONCE, "LINE", "W_SWAP_BLIND"),
    Case("line", "promotes whatever has become of the gate", _ONCE, "LINE", "W_UNFENCED_PROMOTE"),
    Case("line", "promotes who does not wait any more", rule="LINE", left_out="W_PROMOTE_ANYWAY"),
    Case("line", "the reaper buries who waits", rule="LINE", left_out="W_BURIES_WAITERS"),
    Case("line", "a recalibration forgets the line", rule="LINE", left_out="W_LINE_FORGOTTEN"),
)


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SEARCH_S_MAX, check=False)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else -1


def _story(folder: Path, case: Case) -> tuple[str, ...]:
    """The steps of the failing run that the verifier has left in ``folder``, up to the broken promise."""
    replay = _run(folder, "spin", *case.flags, "-T", "-t", f"{case.model}.pml")
    steps: list[str] = []
    for line in replay.splitlines():
        if line.strip() and not line.startswith("spin:"):
            steps.append(line.strip())
        if line.startswith("BROKEN"):
            return tuple(steps)
    return (*steps, "the run does not end")


def search(case: Case) -> Found:
    """Builds the verifier for one case in a folder of its own and lets it look at every reachable state.

    With a rule left out it searches breadth first and stops at the first broken promise, so that the sequence is a
    shortest one. Raises RuntimeError when the model cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="flashsale-model-") as path:
        folder = Path(path)
        shutil.copy(_FOLDER / f"{case.model}.pml", folder)
        said = _run(folder, "spin", *case.flags, "-a", f"{case.model}.pml")
        # COLLAPSE only packs states; unlike bit-state hashing it leaves none out.
        # gcc 12 makes of a sum of comparisons of neighbouring bytes a vector whose "true" is -1: line.pml counts four.
        flags = ["-w", "-O2", "-fno-tree-slp-vectorize", "-DCOLLAPSE", f"-DMEMLIM={_MEMORY_MB_MAX}"]
        flags += ["-DNP"] if case.endless else ["-DSAFETY", *(["-DBFS"] if case.left_out else [])]
        said += _run(folder, "gcc", *flags, "-o", "pan", "pan.c")
        if not (folder / "pan").exists():
            raise RuntimeError(f"{case.model}.pml {' '.join(case.flags)} cannot be built: {said}")
        begun = time.monotonic()
        said = _run(folder, "./pan", f"-m{_DEPTH_MAX}", *(["-l"] if case.endless else []))
        took_s = time.monotonic() - begun
        errors = _number(r"errors: (\d+)", said)
        return Found(
            case,
            states=_number(r"(\d+) states, stored", said),
            depth=_number(r"depth reached (\d+)", said),
            took_s=took_s,
            complete=errors == 0 and not any(sign in said for sign in _INCOMPLETE),
            story=_story(folder, case) if errors > 0 else (),
        )


def _say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _line(found: Found) -> str:
    case = found.case
    name = case.left_out or ("all rules, -l" if case.endless else "all rules")
    figures = f"{found.states:>9,} {found.depth:>5} {found.took_s:>6.1f}"
    mark = "ok " if found.as_it_should_be else "BAD"
    return f"{mark} {case.model:<4} {name:<24} {case.title:<41} {figures}  {found.verdict}"


def _chosen(names: Sequence[str]) -> list[Case]:
    wanted = {name.upper() for name in names}
    known = {name for case in _CASES for name in (case.rule, case.left_out) if name}
    if unknown := wanted - known:
        raise SystemExit(f"no such rule: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [case for case in _CASES if not wanted or {case.rule, case.left_out} & wanted]


def main(names: Sequence[str]) -> int:
    """Checks what is named, or everything; prints the table and the failing sequences. The exit code."""
    if missing := [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]:
        _say(f"missing: {', '.join(missing)}. Install with: apt-get install --no-install-recommends spin gcc libc6-dev")
        return 2
    begun = time.monotonic()
    _say(f"    {'':<4} {'left out':<24} {'':<41} {'states':>9} {'depth':>5} {'s':>6}  verdict")
    found: list[Found] = []
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        for each in workers.map(search, _chosen(names)):
            found.append(each)
            _say(_line(each))
    for each in found:
        if each.story:
            _say(f"\n{each.case.rule or 'all rules'} {each.case.left_out}: {each.case.title}")
            for number, step in enumerate(each.story, 1):
                _say(f"  {number:>2}. {step}" if not step.startswith("BROKEN") else f"      {step}")
    bad = sum(not each.as_it_should_be for each in found)
    verdict = f"{bad} of {len(found)} searches did not come out as they should" if bad else "as it should be"
    _say(f"\n{len(found)} searches, {time.monotonic() - begun:.0f} s: {verdict}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
