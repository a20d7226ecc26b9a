"""Progress of a training, and stopping it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ml.checkpoints import RESUMED
from ml.expected_time import READING, Part


class TrainingStopped(Exception):
    """The training was stopped; its checkpoint is kept."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training: `fraction` (0..1) never decreases; `eta_s` is None until it can be
    estimated.
    """

    stage: str
    fraction: float
    eta_s: float | None
    metrics: Mapping[str, float]


LEAST_MEASURED = 0.01
"""The fraction of the whole that must have been computed before the remaining time is estimated."""
ROUNDING = 1e-9
ENOUGH_MEASURED = 0.15
"""The fraction of a part from which on its own speed is used for the rest of it."""
ENOUGH_OF_FIRST_FIT_S = 15.0
"""Seconds from which on the speed of the first fit is used even before the end of that fit. Until
its first batch, a fit loads and traces what it needs, so its beginning says little about its speed.
"""


class Meter:
    """Converts steps into monotonic `Progress`, with the remaining time estimated from the expected
    and the actual duration of each part.

    Steps that a checkpoint made unnecessary are reported with `RESUMED` and say nothing about the
    speed. Images
    are read at another speed than models are fitted, so the later parts are estimated from the fits
    as soon as there are any.

    Args:
        on_progress: called after each step.
        should_stop: called before each step; True stops.
        parts: the parts of the whole, in order; without them, the whole is one part.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        parts: Sequence[Part] = (Part("all", (1.0,)),),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_progress, self._should_stop = on_progress, should_stop
        self._parts = {part.name: part for part in parts}
        self._whole = sum(part.seconds for part in parts)
        ends = itertools.accumulate(part.seconds / self._whole for part in parts)
        self._ends = dict(zip(self._parts, ends, strict=True))
        self._clock, self._last_at, self._fraction = clock, clock(), 0.0
        self._has_begun = False
        # Of each part: the expected seconds of what was computed, and the actual seconds.
        self._measured = dict.fromkeys(self._parts, (0.0, 0.0))

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

    def part(self, name: str) -> Callable[[str, float, Mapping[str, float]], None]:
        """Return a progress callback for a part, 0..1 over its steps."""
        part = self._parts[name]
        begin = self._ends[name] - part.seconds / self._whole
        return lambda stage, share, metrics: self.tell(
            stage, begin + part.seconds_at(share) / self._whole, metrics
        )

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

    def _report(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        before = self._fraction
        self._fraction = max(before, min(fraction, 1.0))
        now = self._clock()
        took, self._last_at = now - self._last_at, now
        if self._has_begun and RESUMED not in metrics:
            self._measure(before, took)
        self._has_begun = True
        shown = {name: value for name, value in metrics.items() if name != RESUMED}
        self._on_progress(Progress(stage, self._fraction, self._left_s(), shown))

    def _measure(self, before: float, took: float) -> None:
        """Distribute the time since the last step among the parts that it covers."""
        gained = self._fraction - before
        for name, part in self._parts.items():
            end = self._ends[name]
            begin = end - part.seconds / self._whole
            share = max(min(end, self._fraction) - max(begin, before), 0.0)
            is_here = begin <= before < end
            spent = took * share / gained if gained > 0 else took * is_here
            expected, measured = self._measured[name]
            self._measured[name] = expected + share * self._whole, measured + spent

    def _left_s(self) -> float | None:
        """Return the remaining seconds, None until enough has been measured."""
        if sum(expected for expected, _ in self._measured.values()) < LEAST_MEASURED * self._whole:
            return None
        overall = self._overall()
        left = 0.0
        for name, part in self._parts.items():
            begin = self._ends[name] - part.seconds / self._whole
            remaining = self._ends[name] - max(begin, self._fraction)
            if remaining > 0:
                expected, _ = self._measured[name]
                begun = self._fraction > begin + part.steps[0] / self._whole + ROUNDING
                is_known = expected >= ENOUGH_MEASURED * part.seconds and (begun or name == READING)
                slowness = self._slowness([name]) if is_known else None
                left += remaining * self._whole * (overall if slowness is None else slowness)
        return left

    def _overall(self) -> float:
        """Return the slowness assumed for parts that have not started: that of the fits or, at the
        beginning of the first of them, that of reading.
        """
        others = [name for name in self._parts if name != READING]
        begin = self._ends[others[0]] - self._parts[others[0]].seconds / self._whole
        first_end = begin + self._parts[others[0]].steps[0] / self._whole
        in_first = self._fraction < first_end - ROUNDING
        fits_took = sum(self._measured[name][1] for name in others)
        of_fits, of_reading = self._slowness(others), None
        if READING in self._parts and in_first and fits_took < ENOUGH_OF_FIRST_FIT_S:
            of_reading = self._slowness([READING])
        for slowness in (of_reading, of_fits, self._slowness(self._parts)):
            if slowness is not None:
                return slowness
        return 0.0

    def _slowness(self, names: Collection[str]) -> float | None:
        """Return the actual seconds per expected second in these parts; None if too little of them
        has been measured.
        """
        expected, measured = (
            sum(self._measured[name][which] for name in names) for which in (0, 1)
        )
        return measured / expected if expected >= LEAST_MEASURED * self._whole else None
