"""Refuses changes of the contract that would break who uses it: protos/ against the contract as it was last released.

`python protos/compare.py` runs `buf breaking` (rules FILE of buf.yaml) against protos/released.binpb; with --release it
records the present contract as the released one, which is a decision: what is in it can never be taken back.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
RELEASED = PROTOS / "released.binpb"
#: Named in full: the environment's programs need not be on the path.
BUF = Path(sys.executable).with_name("buf")


def breaking(protos: Path, released: Path) -> list[str]:
    """What in the contract of the folder ``protos`` breaks users of the ``released`` image, one line each; buf's words.

    Raises RuntimeError when buf cannot compare at all.
    """
    done = subprocess.run(
        [str(BUF), "breaking", "--against", str(released)], cwd=protos, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 100):
        raise RuntimeError(f"buf breaking: {done.stderr.strip()}")
    return done.stdout.splitlines()


def release(protos: Path, released: Path) -> None:
    """Writes the image of the contract in the folder ``protos``, without comments, to ``released``."""
    subprocess.run([str(BUF), "build", "--exclude-source-info", "-o", str(released)], cwd=protos, check=True)


def main() -> int:
    """Entry point; exit code 1 when the contract breaks the released one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", action="store_true", help="record the present contract as released")
    if parser.parse_args().release:
        release(PROTOS, RELEASED)
        return 0
    found = breaking(PROTOS, RELEASED)
    for line in found:
        sys.stderr.write(f"protos/{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
