"""Terminal output: progress, and metrics with their confidence intervals."""

from __future__ import annotations

import sys
import time

from ml.evaluation.results import StatesByLabel
from ml.figures import Estimate, Metrics
from ml.training.progress import Progress

EVERY_S, EVERY_S_IN_A_LOG = 0.2, 10.0


class StatusLine:
    """Reports the progress of a command and the estimated time left on standard error: one line
    that is overwritten on a terminal, one line every ten seconds in a log.

    `doing` names what `count` counts.
    """

    def __init__(self, doing: str = "") -> None:
        self._doing = doing
        self._began, self._first, self._shown_at = time.monotonic(), -1, float("-inf")

    def count(self, done: int, total: int) -> None:
        """Report the numbers of items done and in total."""
        if self._first < 0:
            self._began, self._first = time.monotonic(), done
        gained, passed = done - self._first, time.monotonic() - self._began
        left = passed / gained * (total - done) if gained > 0 and done < total else None
        self._show(f"{self._doing} {done} of {total}{_left(left)}", done >= total)

    def train(self, progress: Progress) -> None:
        """Say where a training is."""
        figures = "".join(f"  {name} {value:.3g}" for name, value in progress.metrics.items())
        line = f"{progress.fraction:4.0%} {progress.stage}{_left(progress.eta_s)}{figures}"
        self._show(line, progress.fraction >= 1)

    def _show(self, line: str, is_last: bool) -> None:
        now, watched = time.monotonic(), sys.stderr.isatty()
        if now - self._shown_at < (EVERY_S if watched else EVERY_S_IN_A_LOG) and not is_last:
            return
        self._shown_at = now
        sys.stderr.write(f"\r\033[K{line}" + "\n" * is_last if watched else line + "\n")
        sys.stderr.flush()


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", {minutes(seconds)} left"


def minutes(seconds: float) -> str:
    """Format a duration."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def say_states(states: StatesByLabel) -> None:
    """Write the number of verdicts in each state, by label."""
    for label, counts in (
        ("with hemorrhage", states.with_hemorrhage),
        ("without", states.without),
        ("unlabeled", states.unlabeled),
    ):
        say(
            f"  {label}: {counts.suspected} suspected, {counts.inconclusive} inconclusive,"
            f" {counts.not_found} not found"
        )


def say(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(line + "\n")


def say_figures(metrics: Metrics) -> None:
    """Write one line per metric."""
    for name, estimate in metrics.items():
        n = "" if estimate.value is None else f", n = {estimate.n}"
        say(f"  {name:12} {figure(estimate)}{n}")


def figure(estimate: Estimate, signed: bool = False) -> str:
    """Return a metric with its interval, or why there is none."""
    if estimate.value is None:
        return f"– ({estimate.reason})"
    sign = "+" if signed else ""
    if estimate.low is None:
        return f"{estimate.value:{sign}.3f}"
    return (
        f"{estimate.value:{sign}.3f} (95% interval {estimate.low:{sign}.3f} to"
        f" {estimate.high:{sign}.3f})"
    )
