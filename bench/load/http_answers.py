"""Just enough HTTP/1.1 to cut a gateway's answers out of a byte stream at full speed. Pure."""

from dataclasses import dataclass
from functools import lru_cache

import msgspec

#: Wait before a repetition when the answer names none, milliseconds.
DEFAULT_RETRY_MS = 500
#: Longest wait taken from an answer, milliseconds: a wrong figure must not stall the run.
RETRY_MS_MAX = 10_000


class AnswerError(Exception):
    """What came is no HTTP/1.1 answer with a content length."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    head: bytes
    body: bytes
    rest: bytes

    @property
    def closes(self) -> bool:
        """Whether the server will close the connection after it."""
        return b"\r\nconnection: close" in self.head

    @property
    def retry_after_s(self) -> int | None:
        """The whole seconds that its Retry-After header names; None when there is none such."""
        at = self.head.find(b"\r\nretry-after:")
        text = self.head[at + 14 :].split(b"\r\n", 1)[0].strip() if at >= 0 else b""
        return int(text) if text.isdigit() else None


class Facts(msgspec.Struct, frozen=True):
    """What a buyer needs of a body, be it a purchase or a problem (RFC 9457)."""

    reason: str = ""
    retry_after_ms: int = 0
    purchase_id: str = ""
    state: str = ""
    waitlist_position: int | None = None


_decode_facts = msgspec.json.Decoder(Facts).decode


# Everybody who is refused is told the same: reading that once a second is enough.
@lru_cache(maxsize=1024)
def cut_answer(data: bytes) -> Answer | None:
    """The first answer in ``data`` (its head in lower case), or None while it is incomplete. Raises AnswerError."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > 65536:
            raise AnswerError("the head of an answer is longer than 64 KiB")
        return None
    head = data[:end].lower()
    length_at = head.find(b"\r\ncontent-length:")
    if not head.startswith(b"http/1.1 ") or length_at < 0:
        raise AnswerError(f"not an HTTP/1.1 answer with a content length: {head[:80]!r}")
    line_end = head.find(b"\r\n", length_at + 2)
    text = head[length_at + 17 : line_end if line_end >= 0 else len(head)]
    try:
        status, length = int(head[9:12]), int(text)
    except ValueError as error:
        raise AnswerError(f"not a status line and length: {head[:80]!r}") from error
    body_at = end + 4
    if len(data) < body_at + length:
        return None
    return Answer(status, head, data[body_at : body_at + length], data[body_at + length :])


@lru_cache(maxsize=1024)
def facts_of(body: bytes) -> Facts:
    """Reason, delay, purchase and place in line named by a body; empty ones when it is no such JSON object."""
    try:
        return _decode_facts(body)
    except msgspec.MsgspecError:
        return Facts()


def retry_delay_ms(answer: Answer, facts: Facts) -> int:
    """How long to wait before the repetition, milliseconds: the body's figure, else Retry-After, else 500."""
    if facts.retry_after_ms > 0:
        return min(facts.retry_after_ms, RETRY_MS_MAX)
    after_s = answer.retry_after_s
    return DEFAULT_RETRY_MS if after_s is None else min(after_s * 1000, RETRY_MS_MAX)
