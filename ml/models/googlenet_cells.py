"""GoogLeNet with a feature pyramid and one decision per cell (`ml.models.cells`): for each of 28 x
28 cells of a slice.
"""

from __future__ import annotations

from ml.models.cells import fit_cells
from ml.models.contract import FitTask, Fitted
from ml.networks.aggregation import aggregate
from ml.networks.googlenet import GoogLeNet

SCAN_RULE = aggregate


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, GoogLeNet(), smooths=False)
