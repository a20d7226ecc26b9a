"""The client's errors; the text of each is a message for users."""

from __future__ import annotations


class HemoscanError(Exception):
    """Base class of all errors of this package."""


class NothingToSend(HemoscanError):
    """The paths contain no files."""


class Unreachable(HemoscanError):
    """The service did not respond within the client's time limit."""


class TimedOut(HemoscanError):
    """A scan or a report was not finished in time; the service continues to work on it."""


class ApiError(HemoscanError):
    """The service refused a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
