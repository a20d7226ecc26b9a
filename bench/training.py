"""Measure the time per image drawn in an epoch, for each architecture whose convolutions are
trained: the figures of `ml.expected_time`.

    python -m bench.training [ARCHITECTURE ...]

Each architecture is fitted to noise of 224 x 224 px in its own process; times do not depend on the
content. The first batch, which includes compilation, does not count. `expected_s` is CPU time
divided by two cores, so that other programs affect it little; `elapsed_s` is elapsed time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from bench.alone import Figures, judge

ARCHITECTURES = ("alexnet", "alexnet_cells", "googlenet_cells", "googlenet_unet")
IMAGES, SIZE, BATCH, CORES = 48, 224, 32, 2


class Measured(Exception):
    """Enough batches were measured."""


def measure(architecture: str) -> Figures:
    """Return the seconds per drawn image, measured in this process."""
    reports: list[tuple[float, float]] = []

    def report(_share: float, figures: Mapping[str, float]) -> None:
        if "loss" in figures:
            reports.append((time.process_time(), time.perf_counter()))
        elif reports:
            raise Measured

    with suppress(Measured):
        fit_to_noise(architecture, report)
    steps = [
        [(after - before) / BATCH for before, after in pairwise(times)]
        for times in zip(*reports, strict=True)
    ]
    processor, elapsed = (statistics.median(each) for each in steps)
    return {"expected_s": processor / CORES, "elapsed_s": elapsed, "batches": len(reports)}


def fit_to_noise(
    architecture: str, report: Callable[[float, Mapping[str, float]], None], epochs: int = 1
) -> None:
    """Fit an architecture to noise; `report` gets the fraction done and the loss of each batch, and
    raises to stop.
    """
    # Imported here, in the measuring process, because the process that starts it needs none of
    # this.
    import numpy as np

    from ml.catalogue import architecture_named
    from ml.models.contract import FitTask, fit_of

    random = np.random.default_rng(0)
    labels = np.tile([0, 1], IMAGES // 2)
    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as scratch:
        task = FitTask(
            images=random.random((IMAGES, SIZE, SIZE, 1), np.float32),
            labels=labels,
            groups=np.array([f"g{n:02d}" for n in range(IMAGES)]),
            sources=np.full(IMAGES, "a"),
            scans=np.arange(IMAGES),
            masks=np.full((IMAGES, 14, 14), 255, np.uint8),
            unseen=np.ones(IMAGES, bool),
            train=np.arange(IMAGES),
            settings=architecture_named(architecture).parse_settings({"epochs": epochs}),
            seed=0,
            init="random",
            shared=Path(scratch) / "shared",
            folder=Path(scratch) / "own",
            report=report,
        )
        fit_of(architecture)(task)


def main() -> int:
    """Measure each architecture and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    named: list[str] = parser.parse_args().architectures
    return judge("training", measure, {name: (name,) for name in named}, lambda _case: {})


if __name__ == "__main__":
    sys.exit(main())
