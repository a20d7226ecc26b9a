"""Search for pairs of similar codes in a time that grows little faster than their number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

UNRELATED_ALIKE = 0.65
"""Approximate share of bits on which images of different patients agree; if it is larger, a search
takes longer.
"""


MISSED = 1e-6
"""Probability that a search misses a pair that differs in exactly the permitted number of bits;
pairs that differ in fewer bits are missed less often.
"""


FEWEST_DRAWN, MOST_DRAWN = 8, 32

Pairs = Iterator[tuple[np.ndarray, np.ndarray]]
"""Arrays of positions of codes, and of the others that each may be similar to."""


def similar_pairs(codes: np.ndarray, others: np.ndarray, differing: int) -> Pairs:
    """Yield pairs of codes (n, bits) and others (m, bits), 0 or 1: those that differ in at most
    `differing` bits, each missed with a probability of at most `MISSED`, and some that differ in
    more. A pair may be yielded several times.

    Locality-sensitive hashing (P. Indyk and R. Motwani, STOC 1998): each hash table uses a few
    randomly drawn bits as its key, so that codes which agree in these bits share a bucket. With
    more codes, more bits are drawn, so that unrelated codes rarely collide, and there are more
    tables, so that similar codes collide in at least one. The draw is the same each time.
    """
    if not len(codes) or not len(others):
        return
    drawn, tables = size_of_search(codes.shape[1], len(others), differing)
    rows, other_rows = (np.ascontiguousarray(some.T, np.uint8) for some in (codes, others))
    random = np.random.default_rng(0)
    for _ in range(tables):
        chosen = random.choice(len(rows), drawn, replace=False)
        keys, other_keys = _keys(rows, chosen), _keys(other_rows, chosen)
        order = np.argsort(other_keys)
        places = other_keys[order]
        first, end = (np.searchsorted(places, keys, side) for side in ("left", "right"))
        left = np.flatnonzero(first < end)
        while len(left):
            yield left, order[first[left]]
            first[left] += 1
            left = left[first[left] < end[left]]


def size_of_search(bits: int, others: int, differing: int) -> tuple[int, int]:
    """Return the number of bits that a table draws, and the number of tables."""
    wanted = math.ceil(math.log(others) / -math.log(UNRELATED_ALIKE))
    drawn = min(max(wanted, FEWEST_DRAWN), MOST_DRAWN)
    apart = max(differing, 1)
    meet = math.prod((bits - apart - at) / (bits - at) for at in range(drawn))
    return drawn, math.ceil(math.log(MISSED) / math.log1p(-meet))


def _keys(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen bits of each code as one number, uint32 (n,)."""
    keys = np.zeros(rows.shape[1], np.uint32)
    for at in chosen:
        keys <<= 1
        keys |= rows[at]
    return keys
