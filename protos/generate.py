"""Generates gen/ from protos/, or with --check tells whether gen/ is current.

The generated code is committed so that the services start without a compiler, and never edited. gen/ itself is put on
the import path, so that the modules are named as the proto packages are: flashsale.inventory.v1.inventory_service_pb2.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"


def generate(target: Path) -> None:
    """Writes the stubs and their types below ``target``, which must exist."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    # Named in full: the environment's programs need not be on the path.
    programs = Path(sys.executable).parent
    plugins = [f"--plugin={name}={programs / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *plugins]
    subprocess.run([*protoc, f"--python_out={target}", f"--mypy_out=quiet:{target}", *files], check=True, cwd=ROOT)
    subprocess.run(
        [*protoc, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services],
        check=True,
        cwd=ROOT,
    )


def differences(left: Path, right: Path) -> list[str]:
    """Relative names of the files that are not the same on both sides."""
    names = {
        str(path.relative_to(side))
        for side in (left, right)
        for path in side.rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    return sorted(
        name
        for name in names
        if not (left / name).exists()
        or not (right / name).exists()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    """Entry point; exit code 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if gen/ is not current")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        stale = differences(fresh, GEN)
        if check:
            for name in stale:
                sys.stderr.write(f"gen/{name} is not what protos/ generates: run make proto\n")
            return 1 if stale else 0
        shutil.rmtree(GEN / "flashsale", ignore_errors=True)
        shutil.copytree(fresh, GEN, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
