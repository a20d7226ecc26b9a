"""Benchmark of a predict worker on a whole series, from its files to the verdict: time and
memory.

    python -m bench.series [MODEL_FOLDER ...]

Files are decoded by the child process, as in the service; this is followed by the verdict, the
volume for the viewer, and the heat maps of the slices to view first. Each scan is measured in its
own process, pinned to two cores where possible. The last line is the verdict; the exit status is 1
if a limit is exceeded. Slices are phantoms of 512 x 512. Linux only.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from bench.alone import Figures, judge, models_named

SCANS = {"40 DICOM": (40, 5.0), "200 thin DICOM": (200, 1.0), "200 PNG": (200, None)}
"""Number of slices and their spacing in mm, None for single images."""
LIMITS = {40: 6.0, 200: 20.0}
MEMORY_MB, DECODER_MB = 700.0, 1000.0
HEADS = 10  # number of different phantoms, which are repeated in a scan


def measure(folder: Path, slices: int, distance_mm: float | None) -> Figures:
    """Return the results of one model on one scan, measured in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    # Imported here because libraries count the processors that they may use when they are loaded.
    from ml.inference.predictor import Predictor
    from ml.scans.phantoms import phantom, write_dicom, write_png
    from ml.scans.volume import write_volume
    from worker.decoder import Decoder

    with tempfile.TemporaryDirectory(prefix="hemoscan-bench-") as scratch:
        heads = [phantom(number, hemorrhage=number % 2 == 0) for number in range(HEADS)]
        paths = [Path(scratch) / f"{number:03}" for number in range(slices)]
        for number, path in enumerate(paths):
            hu = heads[number % HEADS]
            if distance_mm is None:
                write_png(hu, path)
            else:
                write_dicom(hu, path, number=number, position_mm=number * distance_mm)
        decoder = Decoder(memory_mb=2048, limit_s=60, folder=Path(scratch))
        predictor = Predictor(folder)
        figures, began, began_cpu = {}, time.perf_counter(), sum(os.times()[:4])

        def lap(name: str) -> None:
            nonlocal began
            figures[name] = time.perf_counter() - began
            began = time.perf_counter()

        series = decoder.decode(paths, Path(scratch))
        lap("decode_s")
        decoder.close()
        finding = predictor.predict(series)
        lap("predict_s")
        # CPU time of this process and the child, which does not depend on other load
        figures["files_to_verdict_cpu_s"] = sum(os.times()[:4]) - began_cpu
        write_volume(series, Path(scratch) / "volume.nii.gz")
        lap("volume_s")
        predictor.heatmaps(series, finding.first_slices)
        lap("heat_maps_s")
    figures["files_to_verdict_s"] = figures["decode_s"] + figures["predict_s"]
    for name, who in (
        ("memory_mb", resource.RUSAGE_SELF),
        ("decoder_memory_mb", resource.RUSAGE_CHILDREN),
    ):
        figures[name] = resource.getrusage(who).ru_maxrss / 1024
    return figures


def main() -> int:
    """Measure each model on each scan and print results and verdict."""
    models = models_named(__doc__)
    cases = {
        f"{folder.name}, {name}": (folder, *scan)
        for folder in models
        for name, scan in SCANS.items()
    }
    memory = {"memory_mb": MEMORY_MB, "decoder_memory_mb": DECODER_MB}
    return judge(
        "series",
        measure,
        cases,
        lambda case: {"files_to_verdict_s": LIMITS[cases[case][1]], **memory},
    )


if __name__ == "__main__":
    sys.exit(main())
