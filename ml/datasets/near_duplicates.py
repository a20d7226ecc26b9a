"""Which pictures are the same or nearly the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from ml.errors import DatasetError
from ml.scans.slices import Slice, gray_of

THUMBNAIL_PX, BORDERS_PX = 32, 256


HASH_PX = 16
"""The side of the miniature that is hashed, in pairs of neighbors: the hash has 256 bits, a
quarter as many hex digits.
"""


HASH_DIGITS = HASH_PX * HASH_PX // 4


CANDIDATE = 0.5
"""Thumbnails are compared where hashes are so alike (`likeness`); those of duplicates in our sets
are from 0.55 on.
"""


DUPLICATE_CORRELATION = 0.975
"""From this correlation of their thumbnails on two candidates are the same picture.

Chosen on head_ct, where it and `SAME_PICTURE` join seven of the eleven duplicate pairs known by eye
(the others are cropped differently), and on CT-ICH and PHE-SICH, where they join no two patients;
at 0.974 it would.
"""


SAME_PICTURE = 0.88
"""From this likeness of their hashes on, a picture is one that a model has seen, or that stands in
another data set, saved anew: as JPEG, smaller, darker, with another margin
(`tests/ml/test_grouping.py`). Pictures of two patients of our three sets reach 0.85."""


LEAST_BITS = 32
"""Of the 256 bits of a hash: fewer are set where a picture shows air or a speck, which are
anybody's. Nine of the 2,407 pictures of our three sets have fewer."""


CHUNK = 512
"""Hashes that are compared with all others at a time."""


MOST_PAIRS, MOST_PAIRS_EACH = 100_000, 20
"""Pairs that may be found, and so many more for each image: those of thousands of copies of one
picture would fill the memory.
"""


def look_at(slice_: Slice) -> tuple[str, np.ndarray]:
    """Return the perceptual hash (`HASH_DIGITS` hex digits) and the thumbnail, uint8 (32, 32), of
    what a slice shows.

    Empty borders are cut off first, so that the same picture with another margin is recognized. The
    hash is the difference hash of N. Krawetz ("Kind of like that", 2013): one bit for each
    horizontal neighbor in a 17 x 16 miniature, so that size, contrast and compression of the file
    hardly matter.
    """
    shown = _without_borders(np.ascontiguousarray(gray_of(slice_), np.float32))
    small = cv2.resize(shown, (HASH_PX + 1, HASH_PX), interpolation=cv2.INTER_AREA)
    # the margin keeps compression noise in black borders out
    bits = (small[:, 1:] > small[:, :-1] + 0.01).ravel()
    thumbnail = cv2.resize(shown, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return np.packbits(bits).tobytes().hex(), np.clip(thumbnail * 255, 0, 255).astype(np.uint8)


def is_telling(dhash: str) -> bool:
    """Return whether a picture of this perceptual hash shows enough to say whose it is; an empty
    slice is the same in every scan.
    """
    return int(dhash or "0", 16).bit_count() >= LEAST_BITS


def likeness(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how alike hashes are, float32 (n, m): the bits that both set of those that either sets
    (Tanimoto's coefficient).

    What is black in both says nothing. Both are bits of hashes, float32 (n, 256) and (m, 256).
    """
    shared = bits @ others.T
    either = bits.sum(axis=1)[:, None] + others.sum(axis=1) - shared
    return np.asarray(shared / np.maximum(either, 1), np.float32)


def same_pictures(dhashes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each hash and of each of the others that are of the same picture."""
    bits, of_others = bits_of(dhashes), bits_of(others)
    for start in range(0, len(bits), CHUNK):
        alike = likeness(bits[start : start + CHUNK], of_others) >= SAME_PICTURE
        yield from ((start + int(one), int(other)) for one, other in np.argwhere(alike))


def bits_of(dhashes: Sequence[str]) -> np.ndarray:
    """Return the bits of hashes, float32 (n, 256)."""
    rows = np.array([list(bytes.fromhex(value)) for value in dhashes], np.uint8).reshape(
        len(dhashes), HASH_DIGITS // 2
    )
    return np.unpackbits(rows, axis=1).astype(np.float32)


def _without_borders(grey: np.ndarray) -> np.ndarray:
    """Return the smallest rectangle whose outer rows and columns show something (2 % of them
    brighter than 0.15).

    It is found in a picture of one size, so that a smaller copy is cut alike.
    """
    shape = np.array(grey.shape)
    height, width = np.maximum((shape * BORDERS_PX / shape.max()).round().astype(int), 1)
    bright = (
        cv2.blur(cv2.resize(grey, (int(width), int(height)), interpolation=cv2.INTER_AREA), (3, 3))
        > 0.15
    )
    rows, columns = (
        np.flatnonzero(bright.mean(axis=1) > 0.02),
        np.flatnonzero(bright.mean(axis=0) > 0.02),
    )
    if not len(rows) or not len(columns):
        return grey
    top, bottom = (np.array([rows[0], rows[-1] + 1]) * shape[0] / height).round().astype(int)
    left, right = (np.array([columns[0], columns[-1] + 1]) * shape[1] / width).round().astype(int)
    # a speck may round to nothing
    return np.ascontiguousarray(grey[top : max(bottom, top + 1), left : max(right, left + 1)])


def near_duplicates(
    dhashes: Sequence[str], thumbnails: Sequence[np.ndarray]
) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, that show nearly the same picture.

    Pictures without contrast (an empty frame) resemble each other and say nothing about a patient:
    they are left out.

    Raises:
        DatasetError: they are copies of each other, hundreds of them.
    """
    if not dhashes:
        return []
    bits = bits_of(dhashes)
    flat = np.stack([thumbnail.ravel() for thumbnail in thumbnails]).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    informative, telling = length[:, 0] > 1.0, bits.sum(axis=1) >= LEAST_BITS
    flat /= np.maximum(length, 1e-6)
    pairs: list[tuple[int, int]] = []
    most = MOST_PAIRS + MOST_PAIRS_EACH * len(bits)
    for start in range(0, len(bits), CHUNK):
        own = slice(start, start + CHUNK)
        alike, correlation = likeness(bits[own], bits[start:]), flat[own] @ flat[start:].T
        same = (alike >= SAME_PICTURE) & np.outer(telling[own], telling[start:])
        same |= (alike >= CANDIDATE) & (correlation >= DUPLICATE_CORRELATION)
        found = (
            np.argwhere(np.triu(same & np.outer(informative[own], informative[start:]), 1)) + start
        )
        if len(pairs) + len(found) > most:
            raise DatasetError(
                f"More than {most:,} pairs of images show nearly the same; please leave the copies"
                " out."
            )
        pairs += [(int(first), int(second)) for first, second in found]
    return pairs
