"""The memory of a process, as the kernel counts it."""

from pathlib import Path


def memory_mb(process: int | str = "self") -> float:
    """Resident memory of ``process`` (its id; this one by default), MB."""
    return _status(process, "VmRSS")


def memory_peak_mb(process: int | str = "self") -> float:
    """The most it ever was, or since ``forget_peak``, MB."""
    return _status(process, "VmHWM")


def forget_peak() -> None:
    """The peak of this process begins anew with what it has now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(process: int | str, what: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {what}")
