"""The errors of the client; the text of each is a sentence for users."""

from __future__ import annotations


class HemoscanError(Exception):
    """The base of all errors of this package."""


class NothingToSend(HemoscanError):
    """The paths hold no file."""


class Unreachable(HemoscanError):
    """The service did not answer for as long as the client was patient."""


class TimedOut(HemoscanError):
    """A scan or a report was not finished in time; it goes on at the service."""


class ApiError(HemoscanError):
    """The service refused a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
