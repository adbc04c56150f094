"""The pages for people: the files of `gateway/pages/`, served from memory."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from gateway.etags import REVALIDATED, names
from gateway.problems import Answer, Headers

_FOLDER = Path(__file__).resolve().parent / "pages"

#: What each kind of file is called; a file of another kind in the folder is a mistake, and the gateway does not start.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: Nothing from elsewhere, nothing inline, no text made into markup (there is no policy that could), in nobody's frame.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_COMMON: Headers = [
    # Asked for again each time, and answered by 304: a page never runs with the modules of an older gateway.
    REVALIDATED,
    ("vary", "accept-encoding"),
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
]


@dataclass(frozen=True, slots=True)
class _File:
    """One file, ready to be sent, and its compressed form."""

    headers: Headers
    body: bytes
    etag: str
    packed: bytes
    packed_etag: str


class StaticPages:
    """Everything in ``folder``, read once: nothing that a client sends ever names a file on the disk.

    ``/`` lists the sales, ``/sales/{id}`` is a sale's page for buyers, ``/operator`` that for operators; what they are
    made of is under ``/pages/``. Raises KeyError for a file of a kind that is not served.
    """

    def __init__(self, folder: Path = _FOLDER) -> None:
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self._assets = {f"/pages/{name}": _read(path) for name, path in files.items() if path.suffix != ".html"}
        self._sales = _read(files["sales.html"])
        self._sale = _read(files["sale.html"])
        self._operator = _read(files["operator.html"])

    @property
    def assets(self) -> list[str]:
        """The paths of everything that pages are made of."""
        return sorted(self._assets)

    def _find(self, path: str) -> _File | None:
        match path.split("/"):
            case ["", ""]:
                return self._sales
            case ["", "operator"]:
                return self._operator
            case ["", "sales", sale_id] if sale_id:
                # Whether there is such a sale is for the page to say: it is made without asking anybody.
                return self._sale
        return self._assets.get(path)

    def answer(self, path: str, if_none_match: str | None, accept_encoding: str | None) -> Answer | None:
        """The answer to a GET of ``path``: 200, or 304 for who has it already; None if there is nothing."""
        file = self._find(path)
        if file is None:
            return None
        packs = _accepts_gzip(accept_encoding)
        etag = file.packed_etag if packs else file.etag
        if names(if_none_match, etag):
            return Answer(304, [*_COMMON, ("etag", etag)], b"")
        encoding: Headers = [("content-encoding", "gzip")] if packs else []
        return Answer(200, [*file.headers, ("etag", etag), *encoding], file.packed if packs else file.body)


def _read(path: Path) -> _File:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:20]
    return _File(
        headers=[("content-type", _TYPES[path.suffix]), *_COMMON],
        body=body,
        etag=f'"{digest}"',
        # Without a time, so that every gateway of a build sends the same bytes under the same name.
        packed=gzip.compress(body, mtime=0),
        packed_etag=f'"{digest}-gzip"',
    )


def _accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether gzip is among the encodings asked for, and not with a weight of nothing (RFC 9110, section 12.5.3)."""
    for each in (accept_encoding or "").split(","):
        name, _, weight = each.strip().partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
