"""What the stack knows about each thing it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """How supervisord runs a part."""

    command: tuple[str, ...]
    directory: Path
    priority: int
    """Lower starts earlier and stops later."""
    user: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Never a secret: this is written into supervisord's configuration."""
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
    kill_group: bool = True


@dataclass(frozen=True)
class Part:
    """One server or service process."""

    name: str
    port: int
    program: Program
    check_ready: Callable[[], None]
    """Returns when the part really answers; raises NotReadyError otherwise. Takes a few seconds at most."""
    ready_within_s: float
