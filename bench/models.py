"""Benchmark of the shipped models on one core: loading, one slice, its heat map, a series,
memory.

    python -m bench.models [MODEL_FOLDER ...]

Each model is measured in its own process, pinned to one core where possible. The last line is the
verdict; the exit status is 1 if a limit is exceeded. Images are phantoms; times do not depend on
the content. Linux only.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.alone import Figures, judge, models_named

LIMITS = {"load_s": 1.0, "slice_median_ms": 120.0, "memory_mb": 500.0}
SLICES, REPEATS = 40, 25


def measure(folder: Path) -> Figures:
    """Return the results of one model, measured in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # Imported here because libraries count the processors that they may use when they are loaded.
    from ml.inference.predictor import Predictor
    from ml.scans.phantoms import phantom, write_png
    from ml.scans.read import read_series
    from ml.scans.slices import Series

    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as scratch:
        paths = []
        for number in range(SLICES):
            paths.append(Path(scratch) / f"{number:02}.png")
            write_png(phantom(number, hemorrhage=number % 2 == 0, size=512), paths[-1])
        began = time.perf_counter()
        predictor = Predictor(folder, threads=1)
        loaded = time.perf_counter() - began
        singles = []
        for number in range(REPEATS):
            began = time.perf_counter()
            predictor.predict(read_series([paths[number % SLICES]]))
            singles.append(time.perf_counter() - began)
        slice_ = read_series([paths[0]])
        began = time.perf_counter()
        predictor.heatmap(slice_)
        heat_map = time.perf_counter() - began
        series = Series(tuple(read_series([path]).slices[0] for path in paths))
        began = time.perf_counter()
        predictor.predict(series)
        whole = time.perf_counter() - began
    return {
        "load_s": loaded,
        "slice_median_ms": 1000 * statistics.median(singles),
        "slice_largest_ms": 1000 * max(singles),
        "heat_map_ms": 1000 * heat_map,
        f"series_of_{SLICES}_s": whole,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> int:
    """Measure each model and print results and verdict."""
    models = models_named(__doc__)
    return judge(
        "models", measure, {folder.name: (folder,) for folder in models}, lambda _case: LIMITS
    )


if __name__ == "__main__":
    sys.exit(main())
