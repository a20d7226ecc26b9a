"""AlexNet read cell by cell, over the slices of a scan: half of what a slice says is what its two
neighbors say.

Nothing about the order of slices is learned, so nothing of it is peculiar to the hospitals that
were
learned from: in those that were never seen slices are ranked better than each for itself
(docs/results/README.md).
"""

from __future__ import annotations

from ml.models.alexnet_cells import fit_cells
from ml.models.contract import FitTask, Fitted


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return fit_cells(task, smooths=True)
