"""Run each case in its own process, so that cases do not share memory and caches."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

Figures = dict[str, float]


def judge(
    title: str,
    measure: Callable[..., Figures],
    cases: Mapping[str, tuple[Any, ...]],
    limits: Callable[[str], Mapping[str, float]],
) -> int:
    """Print the results of `measure(*arguments)` for each case, and in the last line whether all
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
