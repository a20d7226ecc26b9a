"""Sample weights for training on several data sets."""

from __future__ import annotations

import numpy as np


def sample_weights(labels: np.ndarray, sources: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a weight for each image, float64 (n,), 1 on average; all arguments are (n,).

    Within a data set, every class has a total weight proportional to the data set's number of
    groups: the images of a patient are correlated, and with equal weights of both classes the
    source does not predict the label.
    """
    weights = np.zeros(len(labels))
    for source in np.unique(sources):
        of_source = sources == source
        worth = len(np.unique(groups[of_source]))
        for label in np.unique(labels[of_source]):
            cell = of_source & (labels == label)
            weights[cell] = worth / cell.sum()
    relative: np.ndarray = weights / weights.mean()
    return relative
