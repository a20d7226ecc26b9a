"""Which slices to look at first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_FIRST = 5


def look_first(probabilities: NDArray[np.float32], threshold: float) -> list[int]:
    """Return the indices of up to five slices (or slabs) to look at first, the most probable one
    first.

    Neighbors show the same blood. So each stretch of positive slices sends its peak before any
    sends a second one; then come other positive slices that are no neighbors of those chosen, then
    whatever is most probable.

    Args:
        probabilities: (n,) from foot to head.
        threshold: positive is from there on.
    """
    by_probability = [int(index) for index in np.argsort(-probabilities, kind="stable")]
    positive = probabilities >= threshold
    stretch = np.cumsum(np.diff(positive, prepend=False))  # one number for each run of equals
    peaks: dict[int, int] = {}
    for index in by_probability:
        if positive[index]:
            peaks.setdefault(int(stretch[index]), index)
    chosen = list(peaks.values())[:MOST_FIRST]
    for apart in (2, 1):  # at least so many slices from those chosen
        for index in by_probability:
            is_candidate = positive[index] or apart == 1
            if (
                len(chosen) < MOST_FIRST
                and is_candidate
                and all(abs(index - other) >= apart for other in chosen)
            ):
                chosen.append(index)
    return sorted(chosen, key=by_probability.index)
