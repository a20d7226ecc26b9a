"""GoogLeNet as a U-Net: the outputs of `ml.models.googlenet_cells`, and the outline of the
hemorrhage in each slice.
"""

from __future__ import annotations

from ml.models.cells import fit_cells
from ml.models.contract import FitTask, Fitted
from ml.networks.aggregation import aggregate
from ml.networks.googlenet import GoogLeNet

SCAN_RULE = aggregate


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, GoogLeNet(outlines=True), smooths=False)
