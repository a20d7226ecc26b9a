"""AlexNet features of each slice, read in anatomical order by a GRU; see `ml.models.recurrent`."""

from __future__ import annotations

from ml.models import recurrent
from ml.models.contract import FitTask, Fitted

SCAN_RULE = None  # it reads the scan as a whole


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models.contract`."""
    return recurrent.fit(task, "gru")
