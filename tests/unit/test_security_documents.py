"""The pages on security: each promise names the test that holds it, and that test exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("security.md", "security-stores.md", "hostile-peers.md")
#: How the last column of a table of promises is called.
TESTED = re.compile(r"\| *(test|tested by)\b[^|]*\|$")


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def promises(text: str) -> list[str]:
    """The rows of every table whose last column says how its promises are tested."""
    rows, counts = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            counts = False
        elif TESTED.search(line):
            counts = True
        elif counts and not line.startswith("|---"):
            rows.append(line)
    return rows


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_names_its_test(page: str) -> None:
    rows = promises(text_of(page))
    assert rows
    for row in rows:
        tested = row.rstrip("| ").rpartition("|")[2]
        assert "test" in tested or "the same" in tested, row


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    functions = {name for path in files.values() for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = re.findall(r"`((?:tests/\w+/)?test_\w+(?:\.py|\.\.\.)?)`", text_of(page))
    assert named
    for name in named:
        if name.startswith("tests/"):
            assert (ROOT / name).exists(), name
        elif name.endswith(".py"):
            assert name in files, name
        elif name.endswith("..."):
            assert any(each.startswith(name.removesuffix("...")) for each in functions), name
        else:
            assert name in functions, name


def test_no_client_sets_the_trace() -> None:
    for path in (ROOT / "gateway").rglob("*.py"):
        assert "traceparent" not in path.read_text().lower(), path
