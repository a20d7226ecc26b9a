"""AlexNet read cell by cell, over the slices of a scan: half of a slice's decision is that of its
two neighbors.

Nothing about the order of slices is learned, so nothing of it is peculiar to the hospitals of the
training data: slices of hospitals that were never seen are ranked better than each by itself
(docs/results/README.md).
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
