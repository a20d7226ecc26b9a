"""Detection of duplicate and near-duplicate images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from ml.errors import DatasetError
from ml.scans.slices import Slice, gray_of

THUMBNAIL_PX, BORDERS_PX = 32, 256


HASH_PX = 16
"""The side of the thumbnail that is hashed, in pairs of neighbors: the hash has 256 bits, or 64 hex
digits.
"""


HASH_DIGITS = HASH_PX * HASH_PX // 4


CANDIDATE = 0.5
"""Thumbnails are compared if hashes have at least this similarity (`likeness`); duplicates in our
data sets have at least 0.55.
"""


DUPLICATE_CORRELATION = 0.975
"""Candidates whose thumbnails have at least this correlation are duplicates.

Chosen on head_ct, where this and `SAME_PICTURE` detect seven of the eleven duplicate pairs found by
visual inspection (the others are cropped differently), and on CT-ICH and PHE-SICH, where no two
patients are joined; 0.974 would join some.
"""


SAME_PICTURE = 0.88
"""An image whose hash has at least this similarity to one that a model has seen, or that is in
another data set, is a copy of it, such as a JPEG version or one with another size, brightness or
margin (`tests/ml/test_grouping.py`). Images of different patients in our three data sets reach
0.85."""


LEAST_BITS = 32
"""Of the 256 bits of a hash: fewer are set if an image shows only air or a speck, which identifies
nobody. Nine of the 2,407 images of our three data sets have fewer.
"""


CHUNK = 512
"""Number of hashes that are compared with all others at a time."""


MOST_PAIRS, MOST_PAIRS_EACH = 100_000, 20
"""Maximum number of pairs, plus this many per image: the pairs of thousands of copies of one image
would exhaust the memory.
"""


def look_at(slice_: Slice) -> tuple[str, np.ndarray]:
    """Return the perceptual hash (`HASH_DIGITS` hex digits) and the thumbnail, uint8 (32, 32), of a
    slice.

    Empty borders are cropped first, so that the margin does not matter. The hash is the difference
    hash of N. Krawetz ("Kind of like that", 2013): one bit for each pair of horizontal neighbors in
    a 17 x 16 thumbnail, so that size, contrast and compression hardly matter.
    """
    shown = _without_borders(np.ascontiguousarray(gray_of(slice_), np.float32))
    small = cv2.resize(shown, (HASH_PX + 1, HASH_PX), interpolation=cv2.INTER_AREA)
    # the margin excludes compression noise in black borders
    bits = (small[:, 1:] > small[:, :-1] + 0.01).ravel()
    thumbnail = cv2.resize(shown, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return np.packbits(bits).tobytes().hex(), np.clip(thumbnail * 255, 0, 255).astype(np.uint8)


def is_telling(dhash: str) -> bool:
    """Return whether an image with this perceptual hash has enough content to be recognized; empty
    slices look the same in every scan.
    """
    return int(dhash or "0", 16).bit_count() >= LEAST_BITS


def likeness(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the pairwise similarity of hashes, float32 (n, m): the Tanimoto coefficient of the set
    bits.

    Areas that are black in both do not count. Arguments are bits of hashes, float32 (n, 256) and
    (m, 256).
    """
    shared = bits @ others.T
    either = bits.sum(axis=1)[:, None] + others.sum(axis=1) - shared
    return np.asarray(shared / np.maximum(either, 1), np.float32)


def same_pictures(dhashes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the positions of hashes and of others that belong to the same image."""
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


def _without_borders(gray: np.ndarray) -> np.ndarray:
    """Crop empty borders: the outer rows and columns of the result have content (2 % of the pixels
    brighter than 0.15).

    The borders are determined at a fixed size, so that smaller copies are cropped alike.
    """
    shape = np.array(gray.shape)
    height, width = np.maximum((shape * BORDERS_PX / shape.max()).round().astype(int), 1)
    bright = (
        cv2.blur(cv2.resize(gray, (int(width), int(height)), interpolation=cv2.INTER_AREA), (3, 3))
        > 0.15
    )
    rows, columns = (
        np.flatnonzero(bright.mean(axis=1) > 0.02),
        np.flatnonzero(bright.mean(axis=0) > 0.02),
    )
    if not len(rows) or not len(columns):
        return gray
    top, bottom = (np.array([rows[0], rows[-1] + 1]) * shape[0] / height).round().astype(int)
    left, right = (np.array([columns[0], columns[-1] + 1]) * shape[1] / width).round().astype(int)
    # a speck may round to an empty rectangle
    return np.ascontiguousarray(gray[top : max(bottom, top + 1), left : max(right, left + 1)])


def near_duplicates(
    dhashes: Sequence[str], thumbnails: Sequence[np.ndarray]
) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of near-duplicates.

    Images without contrast (an empty frame) resemble each other whoever the patient is, and are
    excluded.

    Raises:
        DatasetError: there are hundreds of copies of the same image.
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
        close = (
            np.argwhere(np.triu(same & np.outer(informative[own], informative[start:]), 1)) + start
        )
        if len(pairs) + len(close) > most:
            raise DatasetError(
                f"More than {most:,} pairs of images are near-duplicates; please remove the copies."
            )
        pairs += [(int(first), int(second)) for first, second in close]
    return pairs
