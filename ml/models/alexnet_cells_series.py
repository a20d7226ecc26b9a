"""AlexNet with one decision per cell, over the slices of a scan: half of a slice's decision comes
from its two neighbors.

The order of slices is not learned, so nothing about it can be specific to the hospitals of the
training data: slices from hospitals that were not in training were ranked better than slice by
slice (docs/results/README.md).
"""

from __future__ import annotations

from ml.models.alexnet_cells import LAYER
from ml.models.cells import fit_cells
from ml.models.contract import FitTask, Fitted
from ml.models.fine_tuned import alexnet_of
from ml.networks.aggregation import aggregate_smoothed

SCAN_RULE = aggregate_smoothed


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, alexnet_of(task, LAYER), smooths=True)
