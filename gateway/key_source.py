"""Where the keys of tokens come from, a file or a URL, and how they are kept current without a restart."""

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from gateway.verification_keys import VerificationKeys, read_key_set
from mesh.logs import get_logger
from mesh.loopback import is_loopback

log = get_logger(__name__)

#: Largest key set, bytes; longest wait for a part of it and for the whole, s.
_BYTES_MAX = 64 * 1024
_TIMEOUT_S, _WHOLE_S_MAX = 3.0, 6.0
_HEADERS = {"accept": "application/jwk-set+json, application/json", "user-agent": "flashsale-gateway"}
#: Least time between two tries, s, whatever makes them wanted: an attempt that failed, or tokens of unknown keys.
PAUSE_S = 5.0


def why_not_url(url: str) -> str:
    """Why keys may not be read from a URL; empty when they may.

    Whoever answers decides who is whom, so it is HTTPS, or plain HTTP to a helper on this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or parts.fragment:
        return "is not a URL"
    if parts.username is not None or parts.password is not None:
        return "must not hold a password"
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        return "must be https"
    return ""


def read_file(path: Path) -> bytes:
    """The key set of a file. Raises OSError, and ValueError when it is too large. Blocks."""
    with path.open("rb") as file:
        return _bounded(file.read(_BYTES_MAX + 1))


def read_url(url: str) -> bytes:
    """The key set that a URL answers. Follows no redirect and uses no proxy.

    Raises OSError or http.client.HTTPException when it does not answer 200 in time, and ValueError when the answer is
    too large. Blocks, for some seconds at most.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port or 443, timeout=_TIMEOUT_S, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port or 80, timeout=_TIMEOUT_S)
    )
    with closing(connection):
        connection.connect()
        with _cut_off_after(_WHOLE_S_MAX, connection.sock):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=_HEADERS)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise OSError(f"HTTP {answer.status}")
            return _bounded(answer.read(_BYTES_MAX + 1))


@contextmanager
def _cut_off_after(seconds: float, line: socket.socket) -> Iterator[None]:
    """Ends what is read from ``line`` meanwhile. Its timeout bounds each wait and not their number: an answer that
    comes a byte at a time would otherwise hold up every later reading."""

    def cut_off() -> None:
        with suppress(OSError):
            # That of the bare socket: TLS's own would forget that there is TLS, under the feet of who reads.
            socket.socket.shutdown(line, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _bounded(text: bytes) -> bytes:
    if len(text) > _BYTES_MAX:
        raise ValueError(f"the key set is larger than {_BYTES_MAX} bytes")
    return text


class KeySource:
    """Reads the keys again every ``period_s`` seconds, and sooner when a token names one that is not known, but never
    more often than every ``pause_s``, whatever tokens come.

    A reading that fails, or is no good, leaves the keys as they are; when none has succeeded for ``age_max_s`` seconds
    they are believed no longer, because a key that was withdrawn would go unnoticed. ``changed`` is called whenever the
    keys have become others.
    """

    def __init__(
        self,
        keys: VerificationKeys,
        read: Callable[[], bytes],
        *,
        name: str,
        period_s: float,
        age_max_s: float,
        changed: Callable[[], None],
        pause_s: float = PAUSE_S,
    ) -> None:
        self._keys = keys
        self._read = read
        self._name = name
        self._period_s = period_s
        self._age_max_s = age_max_s
        self._changed = changed
        self._pause_s = min(pause_s, period_s)
        self._well = False
        # Kept: metrics are read in a thread that has no loop.
        self._now = asyncio.get_running_loop().time
        self._tried_at = self._read_at = self._now()
        #: Readings that failed since the start.
        self.failures = 0

    @property
    def age_s(self) -> float:
        """Time since the last reading that succeeded, or since the start, s; from any thread."""
        return self._now() - self._read_at

    async def refresh(self) -> str:
        """Reads them once; empty, or why that failed."""
        self._tried_at = self._now()
        # What is asked for from here on was perhaps not there yet when this reading was made.
        self._keys.wanted.clear()
        try:
            keys = read_key_set(await asyncio.to_thread(self._read))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.failures += 1
            self._well = False
            why = f"{type(error).__name__}: {error}"
            log.error("the keys of tokens could not be read", source=self._name, error=why, age_s=round(self.age_s, 1))
            if self.age_s > self._age_max_s and len(self._keys):
                log.critical("the keys of tokens are too old to be believed", source=self._name)
                self._keys.replace(())
                self._changed()
            return why
        self._well = True
        self._read_at = self._now()
        if self._keys.replace(keys):
            log.info("the keys of tokens have changed", source=self._name, kids=[str(key.kid) for key in keys])
            self._changed()
        return ""

    async def keep_current(self) -> None:
        """Goes on until cancelled."""
        while True:
            due_at = self._tried_at + (self._period_s if self._well else self._pause_s)
            try:
                async with asyncio.timeout_at(due_at):
                    await self._keys.wanted.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(self._tried_at + self._pause_s - self._now())
            await self.refresh()
