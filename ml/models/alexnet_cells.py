"""AlexNet with one decision per cell (`ml.models.cells`): for each of 13 x 13 cells of a slice."""

from __future__ import annotations

from ml.models.cells import fit_cells
from ml.models.contract import FitTask, Fitted
from ml.models.fine_tuned import alexnet_of
from ml.networks.aggregation import aggregate

LAYER = "conv5"

SCAN_RULE = aggregate


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, alexnet_of(task, LAYER), smooths=False)
