"""Sample weights for training on several data sets."""

from __future__ import annotations

import numpy as np


def sample_weights(labels: np.ndarray, sources: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a weight for each image, 1 on average.

    A data set's weight depends on its number of groups, since the images of a patient are
    correlated; within it both classes have equal weight, so that the source does not predict the
    label.
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
