"""What we depend on is pinned by hash, few, each for a reason, and audited where somebody answers."""

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stack.audit_dependencies import (
    ACCEPTED,
    LOCKS,
    LockError,
    NoSourceError,
    Package,
    accepted,
    locked,
    main,
    report,
    vulnerabilities,
)

ROOT = Path(__file__).resolve().parents[2]
HASH = "--hash=sha256:" + "0" * 64
BAD = {"id": "GHSA-test", "modified": "2026-01-01T00:00:00Z"}


@contextmanager
def source(answer: Any, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """An advisory source on this machine, which remembers what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/querybatch"
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            body = json.dumps(answer(asked[-1]) if callable(answer) else answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def nothing_known(question: Any) -> Any:
    return {"results": [{} for _ in question["queries"]]}


def test_every_lock_is_pinned_by_version_and_hash() -> None:
    for lock in LOCKS:
        assert len(locked(lock.read_text())) > 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"redis>=8 {HASH}",
        "redis==8.1.0",
        f"redis {HASH}",
        "redis==8.1.0 --hash=sha256:abc",
        "-e .",
        "git+https://x",
    ],
)
def test_a_lock_with_anything_loose_in_it_is_refused(text: str) -> None:
    with pytest.raises(LockError):
        locked(text)


def test_a_lock_is_read_with_extras_markers_and_comments() -> None:
    entry = f"psycopg[binary,pool]==3.3.1 ; python_version < '4' \\\n    {HASH} \\\n    {HASH}\n"
    text = f"# made by a tool\n{entry}    # via us\n"
    assert locked(text) == [Package("psycopg", "3.3.1")]


def test_every_direct_dependency_is_locked_and_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [re.split(r"[\[=<>~ ]", each)[0] for each in project["project"]["dependencies"]]
    named += [re.split(r"[\[=<>~ ]", each)[0] for each in project["dependency-groups"]["dev"]]
    in_lock = {package.name for package in locked(LOCKS[0].read_text())}
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    for name in named:
        assert name in in_lock, f"{name} is not in the lock: make it anew"
        # A table says "grpcio, -health-checking" and "types-*".
        words = {name, "-" + name.partition("-")[2], name.partition("-")[0] + "-*"}
        assert any(word in reasons for word in words), f"{name} has no reason in docs/dependencies.md"


def test_a_known_vulnerability_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(question: Any) -> Any:
        return {
            "results": [{"vulns": [BAD]} if each["package"]["name"] == "redis" else {} for each in question["queries"]]
        }

    with source(answer) as (url, asked):
        assert main({"AUDIT_URL": url}) == 1
    assert "redis" in (told := capsys.readouterr().err)
    assert "GHSA-test" in told
    # One request tells of all.
    (question,) = asked
    assert {each["package"]["ecosystem"] for each in question["queries"]} == {"PyPI"}
    assert {"grpcio", "granian"} <= {each["package"]["name"] for each in question["queries"]}


def test_nothing_known_passes_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with source(nothing_known) as (url, _):
        assert main({"AUDIT_URL": url, "AUDIT_REQUIRED": "yes"}) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("answer", [[], {}, {"results": []}, {"results": None}])
def test_an_answer_that_makes_no_sense_is_none(answer: Any) -> None:
    with source(answer) as (url, _), pytest.raises(NoSourceError):
        vulnerabilities([Package("redis", "8.1.0")], url)


def test_what_is_not_told_at_once_does_not_pass_for_nothing() -> None:
    with source({"results": [{"next_page_token": "more"}]}) as (url, _):
        assert vulnerabilities([Package("redis", "8.1.0")], url)


def test_without_a_source_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with source({}, status=503) as (url, _):
        assert main({"AUDIT_URL": url}) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert "NOT audited" in line
        assert main({"AUDIT_URL": url, "AUDIT_REQUIRED": "yes"}) == 1
    # Nobody listens there any more.
    assert main({"AUDIT_URL": url}) == 0


def test_the_names_of_our_packages_are_told_to_nobody_in_the_clear() -> None:
    with pytest.raises(NoSourceError):
        vulnerabilities([Package("redis", "8.1.0")], "http://advisories.example")


def test_an_advisory_is_left_out_only_with_a_reason_and_until_its_day() -> None:
    text = "# why\nGHSA-a 2026-12-31 only its server is concerned\n\nGHSA-b 2026-01-01 until the next release\n"
    today = date(2026, 6, 1)
    assert accepted(text, today) == {"GHSA-a"}
    found = {Package("x", "1"): ["GHSA-a"], Package("y", "2"): ["GHSA-a", "GHSA-b"]}
    (line,) = report(found, accepted(text, today))
    assert line.startswith("y 2: ")
    assert "GHSA-a" not in line
    for broken in ("GHSA-a", "GHSA-a 2026-12-31", "GHSA-a soon because"):
        with pytest.raises(ValueError, match=r"."):
            accepted(broken, today)
    accepted(ACCEPTED.read_text(), today)
