"""Shared by the benchmarks: running each case in its own process, which shares no memory or caches
with the others; the models to measure; and the verdict on the results.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from webapp.config import PROJECT_ROOT

Figures = dict[str, float]


def judge(
    title: str,
    measure: Callable[..., Figures],
    cases: Mapping[str, tuple[Any, ...]],
    limits: Callable[[str], Mapping[str, float]],
) -> int:
    """Print the results of `measure(*arguments)` for each case and, on the last line, whether all
    limits hold; return the exit status.

    Args:
        cases: arguments by name of the case.
        limits: returns the upper limits of a case's results by name; results without a limit are
            only printed.
    """
    broken = []
    for case, arguments in cases.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            figures = alone.submit(measure, *arguments).result()
        for name, value in figures.items():
            limit = limits(case).get(name)
            sys.stdout.write(
                f"{case}, {name}: {value:.4g}" + (f" (limit {limit:g})" if limit else "") + "\n"
            )
            if limit and value > limit:
                broken.append(f"{case}, {name}")
    sys.stdout.write(
        f"{title}: {'BROKEN: ' + '; '.join(broken) if broken else 'all limits hold'}\n"
    )
    return 1 if broken else 0


def report(figures: Figures, limits: Mapping[str, float]) -> int:
    """Print results, each with its upper limit if it has one, and, on the last line, whether all
    limits hold; return the exit status.
    """
    for name, value in figures.items():
        limit = f"  (limit {limits[name]:g})" if name in limits else ""
        sys.stdout.write(f"{name:24} {value:9.2f}{limit}\n")
    broken = [name for name, limit in limits.items() if figures[name] > limit]
    sys.stdout.write(f"broken: {', '.join(broken)}\n" if broken else "all limits held\n")
    return 1 if broken else 0


def models_named(description: str | None) -> list[Path]:
    """Return the model folders on the command line, or the shipped models if there are none."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    shipped = [PROJECT_ROOT / "ml" / name for name in ("starter", "starter_series")]
    parser.add_argument("models", type=Path, nargs="*", default=shipped)
    models: list[Path] = parser.parse_args().models
    return models
