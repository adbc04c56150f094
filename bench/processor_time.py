"""Processor time of the stack's parts, as the kernel accounts for it."""

import os
from collections import defaultdict
from pathlib import Path

from stack.stack import Stack

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and ticks used, those of ended children included, of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            # Ended meanwhile.
            continue
        # The name, in parentheses, may hold anything (proc(5)).
        fields = text[text.rindex(")") + 2 :].split()
        found[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    return found


def processor_seconds(stack: Stack) -> dict[str, float]:
    """Seconds used so far by each part of the stack: PostgreSQL's with those of its backends."""
    processes = _processes()
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, (parent, _) in processes.items():
        children[parent].append(pid)

    def whole(pid: int) -> int:
        own = processes[pid][1] if pid in processes else 0
        return own + sum(whole(child) for child in children[pid])

    return {info.name: whole(info.pid) / _TICKS_PER_S for info in stack.all_info() if info.pid}


def used_since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Seconds by part; a part that was started in between counts from its start."""
    return {
        name: round(seconds - (before.get(name, 0.0) if seconds >= before.get(name, 0.0) else 0.0), 2)
        for name, seconds in now.items()
    }


def resident_mb(stack: Stack, name: str) -> float:
    """Memory that one part has in use, megabytes; of its first process only."""
    status = Path(f"/proc/{stack.pid(name)}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def descriptors(stack: Stack, name: str) -> int:
    """Descriptors that one part has open."""
    return len(list(Path(f"/proc/{stack.pid(name)}/fd").iterdir()))
