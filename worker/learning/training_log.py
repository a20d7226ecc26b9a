"""The log of a training run: its last lines, in the row, for the page of the run."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ml.training.progress import Progress
from webapp.display import display_name
from webapp.extensions import utc_now

MOST_LINES = 200
LONGEST_LINE = 300
EPOCH = "epoch"
HEARD = ("ml", "worker")
"""Warnings of these loggers are added as lines."""


class TrainingLog:
    """The last lines of a run's log; stages, epochs and the metrics of folds become lines.

    A run that continues from a checkpoint also continues its log.
    """

    def __init__(self, earlier: str | None) -> None:
        self._lines = deque((earlier or "").splitlines(), maxlen=MOST_LINES)
        self._stage, self._epoch = "", 0
        self._sums: dict[str, tuple[float, int]] = {}
        self.is_new = False

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self._lines)

    def say(self, text: str) -> None:
        """Add a line."""
        one_line = " ".join(text.split())[:LONGEST_LINE]
        self._lines.append(f"{utc_now():%Y-%m-%d %H:%M:%S} {one_line}")
        self.is_new = True

    def add(self, progress: Progress) -> None:
        """Add what a training run reports."""
        epoch = int(progress.metrics.get(EPOCH, 0))
        if progress.stage != self._stage or epoch != self._epoch:
            self._end_epoch()
        if progress.stage != self._stage:
            self._stage = progress.stage
            self.say(progress.stage)
        self._epoch = epoch
        for name, value in progress.metrics.items():
            if name == EPOCH or not math.isfinite(value):
                continue
            if not epoch:
                self.say(f"{progress.stage}: {display_name(name)} {value:.3f}")
                continue
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + float(value), count + 1

    def _end_epoch(self) -> None:
        """Add a line with the means of a finished epoch."""
        if self._sums:
            means = (f"{display_name(n)} {total / k:.4g}" for n, (total, k) in self._sums.items())
            self.say(f"{self._stage}, epoch {self._epoch}: {', '.join(means)}")
        self._sums.clear()

    @contextmanager
    def hearing_warnings(self) -> Iterator[None]:
        """Add the warnings raised within the context."""
        handler = _Handler(self)
        loggers = [logging.getLogger(name) for name in HEARD]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: TrainingLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.say(f"{record.levelname.capitalize()}: {record.getMessage()}")
