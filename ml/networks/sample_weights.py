"""How much each image counts where a model learns from several data sets."""

from __future__ import annotations

import numpy as np


def sample_weights(labels: np.ndarray, sources: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a weight for each image, 1 on average.

    A data set weighs what its number of groups is worth, since the images of a patient repeat each
    other, and within it both classes weigh the same, so that knowing the data set says nothing
    about the label.
    """
    weights = np.zeros(len(labels))
    for source in np.unique(sources):
        here = sources == source
        worth = len(np.unique(groups[here]))
        for label in np.unique(labels[here]):
            cell = here & (labels == label)
            weights[cell] = worth / cell.sum()
    relative: np.ndarray = weights / weights.mean()
    return relative
