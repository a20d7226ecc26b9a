"""Progress of a training, and stopping it."""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ml.checkpoints import RESUMED
from ml.expected_fits import READING, Step
from ml.expected_time import Part


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
PRIOR_OF_KIND, PRIOR_OF_WHOLE = 0.1, 0.015
"""The speed of a kind of steps is known from its own steps, and before that assumed from the
others: the assumption weighs as much as this fraction of the expected seconds of the kind, and of
the whole.
"""
ROUNDING = 1e-9


class Meter:
    """Converts steps into monotonic `Progress`, with the remaining time estimated from the expected
    and the actual duration of each kind of steps (`ml.expected_fits.Step`): heat maps are tested at
    another speed than heads are fitted, and images are read at another speed than either.

    Steps that a checkpoint made unnecessary are reported with `RESUMED` and say nothing about the
    speed.

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
        parts: Sequence[Part] = (Part("all", (Step("all", 1.0),)),),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_progress, self._should_stop = on_progress, should_stop
        self._parts = {part.name: part for part in parts}
        self._steps = [step for part in parts for step in part.steps]
        self._ends = list(itertools.accumulate(step.seconds for step in self._steps))
        self._whole = self._ends[-1]
        begins = itertools.accumulate((part.seconds for part in parts), initial=0.0)
        self._begins = dict(zip(self._parts, begins, strict=False))
        self._clock, self._last_at, self._fraction = clock, clock(), 0.0
        self._has_begun = False
        # Of each kind of steps: the expected seconds of all, those of what was computed, and the
        # actual seconds.
        self._expected = dict.fromkeys((step.kind for step in self._steps), 0.0)
        for step in self._steps:
            self._expected[step.kind] += step.seconds
        self._computed = dict.fromkeys(self._expected, 0.0)
        self._took = dict.fromkeys(self._expected, 0.0)

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
        part, begin = self._parts[name], self._begins[name]
        return lambda stage, share, metrics: self.tell(
            stage, (begin + part.seconds_at(share)) / self._whole, metrics
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
        """Distribute the time since the last report among the steps that it covers."""
        gained = (self._fraction - before) * self._whole
        for step, seconds in self._between(before, self._fraction):
            self._computed[step.kind] += seconds
            self._took[step.kind] += took * seconds / gained
        if gained <= 0:
            at = bisect.bisect_right(self._ends, before * self._whole + ROUNDING)
            self._took[self._steps[min(at, len(self._steps) - 1)].kind] += took

    def _between(self, before: float, after: float) -> Iterator[tuple[Step, float]]:
        """Yield the steps between two fractions of the whole, with the expected seconds of what
        lies between them.
        """
        low, high = before * self._whole, after * self._whole
        for step, end in zip(self._steps, self._ends, strict=True):
            seconds = min(end, high) - max(end - step.seconds, low)
            if seconds > 0:
                yield step, seconds

    def _left_s(self) -> float | None:
        """Return the remaining seconds, None until enough has been measured."""
        if sum(self._computed.values()) < LEAST_MEASURED * self._whole:
            return None
        remaining = dict.fromkeys(self._expected, 0.0)
        for step, seconds in self._between(self._fraction, 1.0):
            remaining[step.kind] += seconds
        overall = self._overall()
        return sum(
            seconds * self._slowness(kind, overall)
            for kind, seconds in remaining.items()
            if seconds
        )

    def _slowness(self, kind: str, others: float) -> float:
        """Return the actual seconds per expected second of a kind of steps, which is assumed to be
        that of the others as long as little of it has been computed.
        """
        prior = PRIOR_OF_KIND * self._expected[kind]
        return (self._took[kind] + prior * others) / (self._computed[kind] + prior)

    def _overall(self) -> float:
        """Return the slowness of everything that was computed. Reading images says little about
        it, but more than nothing: half as much on a logarithmic scale.
        """
        read = self._computed.get(READING, 0.0)
        assumed = math.sqrt(self._took[READING] / read) if read else 1.0
        others = [kind for kind in self._expected if kind != READING]
        prior = PRIOR_OF_WHOLE * self._whole
        took = sum(self._took[kind] for kind in others) + prior * assumed
        return took / (sum(self._computed[kind] for kind in others) + prior)
