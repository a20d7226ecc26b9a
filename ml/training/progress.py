"""Progress of a training, and stopping it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class TrainingStopped(Exception):
    """The training was stopped; its checkpoint remains."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training: `fraction` (0..1) never decreases; `eta_s` is None until it can be
    estimated.
    """

    stage: str
    fraction: float
    eta_s: float | None
    metrics: Mapping[str, float]


class Meter:
    """Converts steps into monotonic `Progress`, with the remaining time estimated from the speed so
    far.
    """

    def __init__(
        self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]
    ) -> None:
        self._on_progress, self._should_stop = on_progress, should_stop
        self._began, self._first, self._fraction = time.monotonic(), -1.0, 0.0

    def tell(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        """Report progress.

        Raises:
            TrainingStopped: `should_stop` returned True.
        """
        if self._should_stop():
            raise TrainingStopped(
                "The training was stopped; it resumes when called again on the same folder."
            )
        self._report(stage, fraction, metrics)

    def end(self) -> None:
        """Report completion; from here on the training cannot be stopped."""
        self._report("done", 1.0, {})

    def _report(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        self._fraction = max(self._fraction, min(fraction, 1.0))
        if self._first < 0:
            self._began, self._first = time.monotonic(), self._fraction
        gained = self._fraction - self._first
        elapsed = time.monotonic() - self._began
        eta = elapsed / gained * (1 - self._fraction) if gained > 0.01 else None
        self._on_progress(Progress(stage, self._fraction, eta, dict(metrics)))

    def within(self, stage: str, start: float, end: float) -> Callable[[float], None]:
        """Return a function to report the share of one stage, which spans `start` to `end` of the
        total.
        """
        return lambda share: self.tell(stage, start + share * (end - start), {})

    def between(
        self, start: float, end: float
    ) -> Callable[[str, float, Mapping[str, float]], None]:
        """Return a progress callback for a part of the training that spans `start` to `end` of the
        total.
        """
        return lambda stage, share, metrics: self.tell(
            stage, start + share * (end - start), metrics
        )
