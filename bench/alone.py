"""Measure in processes of their own, so that memory and warm caches of one case are not
another's.
"""

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
    """Write the figures of `measure(*arguments)` for each case, and as last line whether all limits
    hold; return the exit status.

    Args:
        cases: arguments by the case's name.
        limits: returns what each figure of a case, by its name, may be at most; a figure without a
            limit is told only.
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
