"""Puts the stubs of the public contracts, which the repository keeps in gen/, into the package."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What the contracts are made of; the settlement queue's messages are nobody's business outside.
PARTS = ("balance", "common", "inventory", "purchase")


class StubsHook(BuildHookInterface):  # type: ignore[misc, type-arg, unused-ignore]
    """Adds flashsale/ from ../gen in a checkout, or from beside this file in an unpacked source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds. Raises FileNotFoundError without the stubs."""
        here = Path(self.root)
        folder = next((each for each in (here / "flashsale", here.parent / "gen" / "flashsale") if each.is_dir()), None)
        if folder is None:
            raise FileNotFoundError("gen/flashsale: build in a checkout of the mesh, or from a source distribution")
        for part in PARTS:
            for path in (folder / part).rglob("*.py*"):
                if path.suffix in (".py", ".pyi"):
                    build_data["force_include"][str(path)] = str(Path("flashsale") / path.relative_to(folder))
