"""GoogLeNet with a feature pyramid and one decision per cell, over the slices of a scan: half of a
slice's decision comes from its two neighbors.
"""

from __future__ import annotations

from ml.models.cells import fit_cells
from ml.models.contract import FitTask, Fitted
from ml.networks.aggregation import aggregate_smoothed
from ml.networks.googlenet import GoogLeNet

SCAN_RULE = aggregate_smoothed


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, GoogLeNet(), smooths=True)
