"""What can go wrong while bringing the stack up or down."""

from __future__ import annotations


class StackError(Exception):
    """Something a person has to put right; its text is the whole message, without a traceback."""


class NotReadyError(Exception):
    """A part does not answer yet; its text says what was seen."""
