"""What a person at a terminal sees: how far a command is, and figures with their intervals."""

from __future__ import annotations

import sys
import time

from ml.figures import Estimate, Metrics
from ml.training.progress import Progress

EVERY_S, EVERY_S_IN_A_LOG = 0.2, 10.0


class Counter:
    """Says how many of something are done and how long the rest will take, on standard error: one
    line that is written over at a terminal, a line every ten seconds in a log."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._began, self._first, self._shown_at = time.monotonic(), -1, float("-inf")

    def __call__(self, done: int, total: int) -> None:
        now, watched = time.monotonic(), sys.stderr.isatty()
        if self._first < 0:
            self._began, self._first = now, done
        if now - self._shown_at < (EVERY_S if watched else EVERY_S_IN_A_LOG) and done < total:
            return
        self._shown_at = now
        gained = done - self._first
        left = (
            f", {minutes((now - self._began) / gained * (total - done))} left"
            if gained > 0 and done < total
            else ""
        )
        line = f"{self._doing} {done} of {total}{left}"
        sys.stderr.write(
            f"\r\033[K{line}" + ("\n" if done == total else "") if watched else line + "\n"
        )
        sys.stderr.flush()


class Trail:
    """Says where a training is, on standard error: one line that is written over at a terminal, a
    line every ten seconds in a log.
    """

    def __init__(self) -> None:
        self._shown_at = float("-inf")

    def __call__(self, progress: Progress) -> None:
        now, watched = time.monotonic(), sys.stderr.isatty()
        if (
            now - self._shown_at < (EVERY_S if watched else EVERY_S_IN_A_LOG)
            and progress.fraction < 1
        ):
            return
        self._shown_at = now
        left = "" if progress.eta_s is None else f", {minutes(progress.eta_s)} left"
        figures = "".join(f"  {name} {value:.3g}" for name, value in progress.metrics.items())
        line = f"{progress.fraction:4.0%} {progress.stage}{left}{figures}"
        sys.stderr.write(
            f"\r\033[K{line}" + ("\n" if progress.fraction >= 1 else "") if watched else line + "\n"
        )
        sys.stderr.flush()


def minutes(seconds: float) -> str:
    """Return a length of time as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def say(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(line + "\n")


def say_figures(metrics: Metrics) -> None:
    """Write one line a metric."""
    for name, estimate in metrics.items():
        n = "" if estimate.value is None else f", n = {estimate.n}"
        say(f"  {name:12} {figure(estimate)}{n}")


def figure(estimate: Estimate, signed: bool = False) -> str:
    """Return a figure with its interval, or why there is none."""
    if estimate.value is None:
        return f"– ({estimate.reason})"
    sign = "+" if signed else ""
    if estimate.low is None:
        return f"{estimate.value:{sign}.3f}"
    return (
        f"{estimate.value:{sign}.3f} (95 % interval {estimate.low:{sign}.3f} to"
        f" {estimate.high:{sign}.3f})"
    )
