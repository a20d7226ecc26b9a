"""Selection of the slices to view first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_FIRST = 5


def look_first(probabilities: NDArray[np.float32], threshold: float) -> list[int]:
    """Return the indices of up to five slices (or slabs) to view first, by descending priority.

    Adjacent slices usually show the same hemorrhage. Therefore the peak of each run of positive
    slices comes first; then other positive slices that are not adjacent to a selected one, then the
    most probable of the rest.

    Args:
        probabilities: (n,), from foot to head.
        threshold: at least this probability is positive.
    """
    by_probability = [int(index) for index in np.argsort(-probabilities, kind="stable")]
    positive = probabilities >= threshold
    stretch = np.cumsum(np.diff(positive, prepend=False))  # number of the run of equal values
    peaks: dict[int, int] = {}
    for index in by_probability:
        if positive[index]:
            peaks.setdefault(int(stretch[index]), index)
    chosen = list(peaks.values())[:MOST_FIRST]
    for apart in (2, 1):  # minimum distance from the selected slices
        for index in by_probability:
            is_candidate = positive[index] or apart == 1
            if (
                len(chosen) < MOST_FIRST
                and is_candidate
                and all(abs(index - other) >= apart for other in chosen)
            ):
                chosen.append(index)
    return sorted(chosen, key=by_probability.index)
