"""The workers' Celery application with a model that takes 50 ms per slice without CPU load: `python
-m celery -A bench.slow_model worker …`.

This isolates the system around the model: two cores can then run many workers. For `bench/scale.py`
only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import signals

from worker.app import celery as celery  # `-A` looks for it here

if TYPE_CHECKING:  # The Celery parent must not load anything that is unsafe to fork.
    from ml.inference.predictor import ScanResult
    from ml.scans.slices import FloatArray, Series

SECONDS_PER_SLICE = 0.05


class SlowModel:
    """Stand-in for `ml.inference.predictor.Predictor`."""

    gives_outlines = False

    def predict_many(self, series: Sequence[Series], *_: Any) -> list[ScanResult]:
        """Return a result for each scan after the delay."""
        # Imported here, in the child, because it loads libraries that are unsafe to fork.
        from ml.inference.predictor import ScanResult

        time.sleep(SECONDS_PER_SLICE * sum(len(scan.slices) for scan in series))
        return [
            ScanResult(0.25, 0.5, False, False, (0.25,) * len(scan.slices), ()) for scan in series
        ]

    def heatmaps(self, series: Series, indices: Sequence[int], *_: Any) -> list[FloatArray]:
        """Return empty heat maps."""
        return [0 * series.slices[index].pixels for index in indices]


def stand_in(**_: object) -> None:
    """Replace the predictor by the stub in the pool's child process."""
    # Imported here, in the child, because they load libraries that are unsafe to fork.
    from worker import heat_maps, prediction

    for module in (heat_maps, prediction):
        module.predictor_for = lambda version: SlowModel()  # type: ignore[attr-defined]


# After the worker's own initialization, which warms up the real model.
signals.worker_process_init.connect(stand_in, weak=False)
