"""The pages as HTTP serves them: whole, from memory, bound to this origin, and made of nothing from elsewhere."""

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest

from gateway.static_pages import CONTENT_SECURITY_POLICY, StaticPages
from tests.contract.gateway_harness import SALE, Harness, harness

FOLDER = Path(__file__).resolve().parents[2] / "gateway" / "pages"
PAGES = {"/": "sales.html", f"/sales/{SALE}": "sale.html", "/operator": "operator.html"}


class _Parts(HTMLParser):
    """What a page is made of, and what a strict policy forbids in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value for name in ("href", "src") if (value := given.get(name))]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self._script = tag == "script"
        if tag == "style":
            self.inline.append(tag)

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append(data)


async def _get(h: Harness, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    reply = await h.request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})
    return reply.status, reply.headers, reply.body


async def test_every_file_is_served_with_its_type_and_a_strict_policy() -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    files = {f"/pages/{path.relative_to(FOLDER).as_posix()}": path for path in FOLDER.rglob("*.*")}
    wanted = {path: file for path, file in files.items() if file.suffix != ".html"}
    wanted |= {path: FOLDER / name for path, name in PAGES.items()}
    async with harness() as h:
        for path, file in wanted.items():
            status, headers, body = await _get(h, path)
            assert (status, body) == (200, file.read_bytes()), path
            assert headers["content-type"].startswith(types[file.suffix])
            assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-cache"
            assert "content-encoding" not in headers
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'self';")
    assert "unsafe" not in CONTENT_SECURITY_POLICY


async def test_who_has_a_page_already_is_told_so_and_whose_is_old_gets_the_new_one() -> None:
    async with harness() as h:
        for path in (*PAGES, "/pages/js/api.js"):
            _, headers, _ = await _get(h, path)
            etag = headers["etag"]
            for same in (etag, f'"other", {etag}', f"W/{etag}", "*"):
                status, again, body = await _get(h, path, if_none_match=same)
                assert (status, again["etag"], body) == (304, etag, b"")
            assert (await _get(h, path, if_none_match='"older"'))[0] == 200


async def test_a_page_is_sent_compressed_to_who_takes_that_and_each_form_has_its_own_name() -> None:
    async with harness() as h:
        _, plain, body = await _get(h, "/operator")
        for accepted in ("gzip", "br;q=1.0, gzip;q=0.5", "deflate,GZIP"):
            status, headers, packed = await _get(h, "/operator", accept_encoding=accepted)
            assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", "accept-encoding")
            assert gzip.decompress(packed) == body
            assert headers["etag"] != plain["etag"]
            assert (await _get(h, "/operator", accept_encoding=accepted, if_none_match=plain["etag"]))[0] == 200
        for refused in ("identity", "gzip;q=0", "gzip; q=0.000", ""):
            assert "content-encoding" not in (await _get(h, "/operator", accept_encoding=refused))[1]


async def test_nothing_outside_the_folder_is_served_whatever_the_path_says() -> None:
    async with harness() as h:
        for path in (
            "/pages",
            "/pages/",
            "/pages/js",
            "/pages/sale.html",
            "/pages/../settings.py",
            "/pages/%2e%2e/settings.py",
            "/pages/js/../../app.py",
            "/pages//etc/passwd",
            "/pages/js/api.js/",
            "/sales",
            "/sales/",
            "/sales/a/b",
            "/operator/",
            "/index.html",
        ):
            assert (await _get(h, path))[0] == 404, path
        assert (await h.request("POST", "/operator")).status == 405


async def test_pages_come_while_every_service_is_away() -> None:
    nobody = "127.0.0.1:1"
    async with harness(purchase_target=nobody, inventory_target=nobody, balance_target=nobody) as h:
        for path in PAGES:
            assert (await _get(h, path))[0] == 200


@pytest.mark.parametrize("name", sorted(PAGES.values()))
def test_a_page_has_nothing_inline_and_all_it_names_is_there(name: str) -> None:
    parts = _Parts((FOLDER / name).read_text())
    assert parts.inline == []
    served = StaticPages()
    for link in parts.links:
        if not link.startswith("#"):
            assert served.answer(link, None, None) is not None, link


def test_everything_that_modules_and_sheets_name_is_there_and_from_here() -> None:
    assets = set(StaticPages().assets)
    for path in sorted(assets):
        text = (FOLDER / path.removeprefix("/pages/")).read_text()
        names = re.findall(r"""(?:^import |\bfrom )"([^"]+)";""", text, re.MULTILINE) if path.endswith(".js") else []
        names += re.findall(r"""url\(["']?([^"')]+)""", text) if path.endswith(".css") else []
        for name in names:
            assert urljoin(path, name) in assets, f"{path} names {name}"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path


def test_a_page_loads_all_its_modules_at_once() -> None:
    """A browser learns of a module's imports only when it has the module; each page names them all in its head."""
    for name in PAGES.values():
        links = [link for link in _Parts((FOLDER / name).read_text()).links if link.endswith(".js")]
        needed, seen = [link for link in links if link.endswith("_page.js")], set()
        assert len(needed) == 1
        while needed:
            path = needed.pop()
            if path not in seen:
                seen.add(path)
                text = (FOLDER / path.removeprefix("/pages/")).read_text()
                needed += [urljoin(path, each) for each in re.findall(r'(?:^import |\bfrom )"([^"]+)";', text, re.M)]
        assert set(links) == seen, name


def test_a_file_of_a_kind_that_is_not_served_is_noticed_when_the_gateway_starts(tmp_path: Path) -> None:
    for name in PAGES.values():
        (tmp_path / name).write_text("<!doctype html>")
    assert StaticPages(tmp_path).assets == []
    (tmp_path / "notes.txt").write_text("to do")
    with pytest.raises(KeyError):
        StaticPages(tmp_path)
