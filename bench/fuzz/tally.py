"""The record of what was sent and of the responses, and the guarantees that were violated."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.fuzz.odd import MARKUP
from worker import decoder

UNHANDLED = 1
"""Exit status of a decoder process that met an unexpected exception. Resource limits and crashing
decoders end in signals instead.
"""
HANGS_S = 5
"""A response that takes longer counts as a hang."""


@dataclass
class Tally:
    """The outcomes of everything that was sent.

    Attributes:
        outcomes: by kind of the seed file: "refused" uploads, and scans by status.
        sentences: error messages by kind, without numbers.
        statuses: status codes of API and pages, by caller and operation.
        slowest: the longest time that a response took, in seconds, and its operation.
        associations, received_studies: malformed associations with the DICOM listener, and the
            studies that were received in them.
        slowest_echo_s: the longest time of a C-ECHO beside malformed associations.
        deaths: abnormal exits of the decoder process, by exit status.
    """

    broken: list[str] = field(default_factory=list)
    inputs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    sentences: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    associations: int = 0
    received_studies: int = 0
    slowest_echo_s: float = 0.0
    slowest: tuple[float, str] = (0.0, "")
    upload_mb: float = 0.0
    decoder_mb: float = 0.0

    def check(self, holds: bool, complaint: str) -> None:
        """Record `complaint` if the condition is false."""
        if not holds:
            self.complain(complaint)

    def complain(self, complaint: str) -> None:
        """Record a violation, and print it at once: a campaign takes long."""
        self.broken.append(complaint)
        sys.stderr.write(f"{complaint}\n")

    def answered(
        self, operation: str, status: int, took_s: float, caller: str = "owner", detail: str = ""
    ) -> None:
        """Record a response.

        Args:
            detail: the request, for the record of a failure.
        """
        self.statuses[caller, operation, status] += 1
        self.slowest = max(self.slowest, (took_s, operation))
        self.check(status < 500, f"{operation} was answered with {status}{detail}")
        self.check(took_s <= HANGS_S, f"{operation} took {took_s:.0f} s{detail}")

    def check_page(self, operation: str, page: str) -> None:
        """Check that a page shows text as text."""
        self.check(MARKUP not in page, f"{operation} renders text as markup")

    def check_incoming(self, home: Path, operation: str) -> None:
        """Check that a request left nothing in the folder for incoming files."""
        left = [path for path in (home / "incoming").rglob("*") if path.is_file()]
        self.check(not left, f"{operation} left {len(left)} files in incoming")


class Overheard(logging.Handler):
    """Reads the log: an error violates the guarantees by itself, and dead child processes are
    counted.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.WARNING)
        self.tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        """Take in one line of the log."""
        if record.name == decoder.__name__ and isinstance(record.args, tuple) and record.args:
            self.tally.deaths[int(str(record.args[0]))] += 1
            self.tally.check(
                record.args[0] != UNHANDLED,
                "a file caused an unexpected exception in the decoder",
            )
        if record.levelno >= logging.ERROR:
            self.tally.complain(f"the log says: {self.format(record)}")
