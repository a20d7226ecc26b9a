"""AlexNet features of each slice, read in anatomical order by an LSTM; see
`ml.models.recurrent`.
"""

from __future__ import annotations

from ml.models import FitTask, Fitted, recurrent


def fit(task: FitTask) -> Fitted:
    """Fit the architecture on `task.train`; see `ml.models`."""
    return recurrent.fit(task, "lstm")
