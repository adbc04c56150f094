"""Writes docs/grpc-examples.md from docs/examples/, or with --check tells whether it is current.

Each example is one call: who makes it, what is asked, and what of the answer matters; in the document it stands in the
words of grpcurl and of buf curl. That they work is shown by tests/acceptance/test_grpc_examples.py.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
DOCUMENT = ROOT / "docs" / "grpc-examples.md"

#: Where `make up` has them.
PORTS = {"inventory": 7051, "balance": 7052, "purchase": 7053}


def full_name(method: str) -> str:
    """ "balance/Deposit" as gRPC has it."""
    kind, _, name = method.partition("/")
    return f"flashsale.{kind}.v1.{kind.capitalize()}Service/{name}"


def commands(example: Mapping[str, Any]) -> tuple[str, str]:
    """The call with grpcurl, and with buf curl."""
    kind = example["method"].partition("/")[0]
    peer, method = f"{example['as']} {kind}", full_name(example["method"])
    data = json.dumps(example["request"])
    seconds = example.get("seconds")
    bound, buf_bound = (f"-max-time {seconds} ", f"--timeout {seconds}s ") if seconds else ("", "")
    address = f"localhost:{PORTS[kind]}"
    return (
        f"grpcurl $(peer {peer}) {bound}-d '{data}' \\\n    {address} {method}",
        f"buf curl $(buf_peer {peer}) {buf_bound}-d '{data}' \\\n    https://{address}/{method}",
    )


def _chapter(path: Path, seen: set[str]) -> Iterator[str]:
    yield from (f"## {path.stem.partition('-')[2].replace('-', ' ').capitalize()}", "")
    for example in json.loads(path.read_text()):
        name = example["method"].partition("/")[2]
        if name not in seen:
            yield from (f"### {name}", "")
            seen.add(name)
        yield from (example["words"], "", "```sh", *commands(example), "```", "", "```json")
        yield from (json.dumps(example["answer"], indent=2), "```", "")


def write(folder: Path) -> str:
    """The document of a folder's examples."""
    lines, seen = [(folder / "head.md").read_text()], set[str]()
    for path in sorted(folder.glob("*.json")):
        lines += _chapter(path, seen)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Entry point; exit code 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the document is not current")
    text = write(EXAMPLES)
    if not parser.parse_args().check:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.stderr.write("docs/grpc-examples.md is not what docs/examples/ says: run make proto\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
