"""A small file system under PostgreSQL's data, so that a disk can be full without filling this machine's."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

_SIZE_MB = 1_500


class SmallDisk:
    """Moves ``folder``, which nobody uses yet, onto a tmpfs of its own. Only root may; for anybody else nothing happens
    and ``available`` says so."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.available = False

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            return self
        aside = self._folder.with_name(self._folder.name + ".aside")
        self._folder.rename(aside)
        self._folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MB}m,mode=700", "tmpfs", str(self._folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            self._folder.rmdir()
            aside.rename(self._folder)
            return self
        self.available = True
        status = aside.stat()
        os.chown(self._folder, status.st_uid, status.st_gid)
        subprocess.run(["cp", "-a", f"{aside}/.", str(self._folder)], check=True)
        shutil.rmtree(aside)
        return self

    def __exit__(self, *_: object) -> None:
        if self.available:
            # Lazily: the folder that it is in may be gone, or a process may be at its end.
            subprocess.run(["umount", "-l", str(self._folder)], capture_output=True, check=False)

    @property
    def _filler(self) -> Path:
        return self._folder / "filler"

    def fill(self) -> None:
        """Leaves no byte free."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 512):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def empty(self) -> None:
        """Frees what was filled."""
        self._filler.unlink(missing_ok=True)
