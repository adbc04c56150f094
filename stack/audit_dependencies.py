"""Are the locked packages pinned by hash, and does any have a known vulnerability? `make lint` asks both.

The second is asked of OSV (https://osv.dev, which has PyPI's advisories too) in one request of names and versions.
Where no source answers that is said in one line, and is no failure: whether a build passes must not hang on a network.
AUDIT_URL names another source that speaks OSV's protocol; AUDIT_REQUIRED=yes makes silence a failure, for CI that has
one. An advisory that does not concern us is put into stack/accepted_advisories.txt with the day until which, and why.

Sources: google.github.io/osv.dev/post-v1-querybatch, osv.dev/docs (ecosystem PyPI).
"""

import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
LOCKS = (_ROOT / "requirements.lock", _ROOT / "bench" / "peers" / "requirements.lock")
ACCEPTED = Path(__file__).with_name("accepted_advisories.txt")
_SOURCE = "https://api.osv.dev"
_TIMEOUT_S = 10.0
#: What OSV takes in one request.
_QUERIES_MAX = 1000
_ANSWER_BYTES_MAX = 8 * 1024 * 1024
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


class LockError(Exception):
    """A line of a lock is not pinned by version and hash; the message names it."""


class NoSourceError(Exception):
    """No advisory source answered; the message says why."""


@dataclass(frozen=True, order=True)
class Package:
    """A locked package."""

    name: str
    version: str


def locked(text: str) -> list[Package]:
    """The packages of a lock. Raises LockError unless each has one version and at least one SHA-256."""
    packages = []
    for entry in re.sub(r"\\\n\s*", " ", text).splitlines():
        entry = entry.partition(" #")[0].strip()
        if not entry or entry.startswith("#"):
            continue
        found = _REQUIREMENT.match(entry)
        if found is None:
            raise LockError(f"not pinned to a version: {entry[:80]}")
        if not _HASH.search(entry):
            raise LockError(f"no hash: {entry[:80]}")
        packages.append(Package(found["name"].lower(), found["version"]))
    if not packages:
        raise LockError("no packages")
    return packages


def accepted(text: str, today: date) -> set[str]:
    """Ids of advisories that do not count today. A line is: id, last day (ISO 8601), why; ValueError for others."""
    ids = set()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        advisory, until, _why = line.split(maxsplit=2)
        if date.fromisoformat(until) >= today:
            ids.add(advisory)
    return ids


def vulnerabilities(packages: Sequence[Package], source: str) -> dict[Package, list[str]]:
    """Ids of the known vulnerabilities of each package that has any. Raises NoSourceError if ``source`` is silent."""
    found: dict[Package, list[str]] = {}
    for start in range(0, len(packages), _QUERIES_MAX):
        part = packages[start : start + _QUERIES_MAX]
        queries = [{"package": {"name": each.name, "ecosystem": "PyPI"}, "version": each.version} for each in part]
        results = _asked(source, {"queries": queries}).get("results")
        if not isinstance(results, list) or len(results) != len(part):
            raise NoSourceError("its answer is not one result per package")
        for package, result in zip(part, results, strict=True):
            ids = [str(each["id"]) for each in (result or {}).get("vulns") or []]
            if (result or {}).get("next_page_token"):
                # Never seen for one version of one package; what is not told must not pass for what is not there.
                ids.append("more than one page")
            if ids:
                found[package] = sorted(ids)
    return found


def _asked(source: str, question: Mapping[str, Any]) -> Any:
    if not source.startswith(("https://", "http://127.0.0.1:")):
        raise NoSourceError(f"{source} is neither HTTPS nor this machine")
    request = urllib.request.Request(  # noqa: S310 (see above)
        f"{source}/v1/querybatch", json.dumps(question).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (see above)
            value = json.loads(answer.read(_ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as error:
        error.close()
        raise NoSourceError(f"it answered {error.code}") from error
    except (OSError, ValueError) as error:
        raise NoSourceError(str(getattr(error, "reason", error))) from error
    if not isinstance(value, dict):
        raise NoSourceError("its answer is no JSON object")
    return value


def report(found: Mapping[Package, Iterable[str]], ignored: set[str]) -> list[str]:
    """A line for each package that has a vulnerability which counts."""
    lines = []
    for package, ids in sorted(found.items()):
        counting = [each for each in ids if each not in ignored]
        if counting:
            links = " ".join(f"https://osv.dev/{each}" for each in counting)
            lines.append(f"{package.name} {package.version}: {links}")
    return lines


def main(environment: Mapping[str, str] = os.environ, locks: Sequence[Path] = LOCKS) -> int:
    """The exit code: 0, or 1 with a line for each fault on standard error."""
    packages: set[Package] = set()
    try:
        for lock in locks:
            packages.update(locked(lock.read_text()))
        ignored = accepted(ACCEPTED.read_text(), date.today())
    except LockError as error:
        sys.stderr.write(f"{lock}: {error}\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"{ACCEPTED.name}: a line is: id, last day, why ({error})\n")
        return 1
    source = environment.get("AUDIT_URL") or _SOURCE
    try:
        found = vulnerabilities(sorted(packages), source)
    except NoSourceError as error:
        sys.stderr.write(
            f"dependencies: {len(packages)} pinned by hash; NOT audited: no answer from {source} ({error})\n"
        )
        return int(environment.get("AUDIT_REQUIRED") == "yes")
    lines = report(found, ignored)
    for line in lines:
        sys.stderr.write(f"vulnerable: {line}\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
