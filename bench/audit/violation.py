"""A promise that looks broken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """A promise that looks broken."""

    promise: str
    """I1 to I8."""
    code: str
    """What kind of breach, for comparing looks."""
    subject: str
    """Which sale, purchase, account or transfer."""
    detail: str
    patience_s: float = 1.0
    """It counts once it has been seen in every look for so many seconds."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The same in two looks if it is the same breach of the same thing."""
        return (self.promise, self.code, self.subject)

    def __str__(self) -> str:
        return f"{self.promise} {self.subject}: {self.detail}"
