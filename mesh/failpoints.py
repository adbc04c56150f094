"""Named points between two effects of a purchase, at which a fault test ends or stops the process.

A point is a call ``failpoints.hit("inventory.granted")``. It does nothing unless the process was started with a folder
of armed points, which a test does: a file of the point's name, whose content is what happens, ``kill`` (SIGKILL) or
``stop`` (SIGSTOP, until somebody sends SIGCONT). Of all processes that share the folder the first to get there takes
the point, once, and says so by renaming the file to ``<point>.fired.<pid>``: a fault that was not seen to fire did not
count.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.settings import SettingsError, read_settings, setting

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class FailpointSettings:
    """Where the armed points are, in a process that is under test."""

    environment: str = setting("production or test", default="production")
    failpoints_dir: str = setting("folder of armed failpoints, only where MESH_ENVIRONMENT is test", default="")

    def __post_init__(self) -> None:
        if self.environment not in ("production", "test"):
            raise SettingsError(f"MESH_ENVIRONMENT: {self.environment!r} is neither production nor test")
        if self.failpoints_dir and self.environment != "test":
            raise SettingsError("MESH_FAILPOINTS_DIR: failpoints end processes, so they need MESH_ENVIRONMENT=test")


_folder: Path | None = None


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Reads MESH_ENVIRONMENT and MESH_FAILPOINTS_DIR. Raises SettingsError for failpoints outside a test."""
    global _folder
    settings = read_settings(FailpointSettings, "MESH_", environ)
    _folder = Path(settings.failpoints_dir) if settings.failpoints_dir else None


def hit(name: str) -> None:
    """The process has come to this point; if it is armed, it ends or stops here."""
    if _folder is None:
        return
    fired = _folder / f"{name}.fired.{os.getpid()}"
    try:
        (_folder / name).rename(fired)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), _ACTIONS[fired.read_text().strip()])
