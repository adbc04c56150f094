"""Pages of lists (AIP-158), which end at a number of rows or at a number of bytes, whichever comes first."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

Row = TypeVar("Row")
Written = TypeVar("Written", bound=Message)

#: A page ends early beyond this size, bytes, so that it fits into what a client of the mesh receives
#: (mesh.peer_limits.ANSWER_BYTES_MAX); a first row that is larger by itself is given all the same.
PAGE_BYTES_MAX = 2 * 1024 * 1024


class Listed(NamedTuple, Generic[Row]):
    """What was read of a list for a page of at most ``size`` rows: these, and one more if there are further ones.
    ``token_after`` makes the token of the page that begins after a row."""

    rows: Sequence[Row]
    size: int
    token_after: Callable[[Row], str]

    def page(self, write: Callable[[Row], Written]) -> tuple[list[Written], str]:
        """The page's messages, and the token of the next page: empty at the end of the list."""
        messages: list[Written] = []
        size_bytes = 0
        for row in self.rows[: self.size]:
            message = write(row)
            size_bytes += message.ByteSize()
            if messages and size_bytes > PAGE_BYTES_MAX:
                break
            messages.append(message)
        if len(messages) == len(self.rows):
            return messages, ""
        return messages, self.token_after(self.rows[len(messages) - 1])
