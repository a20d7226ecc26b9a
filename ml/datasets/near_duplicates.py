"""Detection of duplicate and near-duplicate images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from ml.datasets.copy_search import Pairs, similar_pairs
from ml.errors import DatasetError
from ml.scans.slices import Slice, gray_of

THUMBNAIL_PX, BORDERS_PX = 32, 256


HASH_PX = 16
"""The side of the thumbnail that is hashed, in pairs of neighbors: the hash has 256 bits, or 64 hex
digits.
"""


HASH_DIGITS = HASH_PX * HASH_PX // 4


CANDIDATE = 0.5
"""Thumbnails are compared if hashes have at least this similarity (the Tanimoto coefficient of the
set bits); duplicates in our data sets have at least 0.55.
"""


DUPLICATE_CORRELATION = 0.975
"""Candidates whose thumbnails have at least this correlation are duplicates.

Chosen on head_ct, where this and `SAME_PICTURE` detect seven of the eleven duplicate pairs found by
visual inspection (the others are cropped differently), and on CT-ICH and PHE-SICH, where no two
patients are joined; 0.974 would join some.
"""


SAME_PICTURE = 0.88
"""An image whose hash has at least this similarity to that of an image that a model has seen, or
that is in another data set, counts as a copy of it, such as a JPEG version or one with another
size, brightness or margin (`tests/ml/datasets/test_groups.py`). Images of different patients in
head_ct, CT-ICH and PHE-SICH reach at most 0.85.
"""


LEAST_BITS = 32
"""Minimum number of set bits among the 256 of a hash: fewer are set if an image shows only air or a
speck, which identifies nobody. Nine of the 2,407 images of these three data sets have fewer.
"""


PLANES, SIDES_DIFFERING = 1024, 92
"""Number of random hyperplanes for the search for similar thumbnails, and maximum number of
differing sides. Each thumbnail is described by the sides on which it lies (random-projection
hashing, M. Charikar 2002), and pairs that differ in few sides are compared. At the correlation
`DUPLICATE_CORRELATION`, a side differs with probability arccos(0.975) / pi = 0.071, and 1% of pairs
differ in more than 92 of 1,024; these are still detected, though not quite as reliably.
"""


AT_ONCE = 4096
"""Number of pairs of thumbnails that are compared at a time."""


MOST_PAIRS, MOST_PAIRS_EACH = 100_000, 20
"""Maximum number of pairs, plus this many per image: the pairs among thousands of copies of one
image would exhaust the memory.
"""


def fingerprint(slice_: Slice) -> tuple[str, np.ndarray]:
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


def same_pictures(dhashes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the positions of hashes and of `others` that belong to the same image."""
    bits, of_others = bits_of(dhashes), bits_of(others)
    words, other_words = _words(bits), _words(of_others)

    def same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return _similarity(words[first], other_words[second]) >= SAME_PICTURE

    pairs = _confirmed(similar_pairs(bits, of_others, _bits_differing(bits)), same, len(others))
    yield from _as_tuples(pairs, len(others))


def bits_of(dhashes: Sequence[str]) -> np.ndarray:
    """Return the bits of hashes, float32 (n, 256)."""
    rows = np.array([list(bytes.fromhex(value)) for value in dhashes], np.uint8).reshape(
        len(dhashes), HASH_DIGITS // 2
    )
    return np.unpackbits(rows, axis=1).astype(np.float32)


def _without_borders(gray: np.ndarray) -> np.ndarray:
    """Crop empty borders: the outer rows and columns of the result have content (2% of the pixels
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
    bits, count = bits_of(dhashes), len(dhashes)
    words = _words(bits)
    flat = np.stack([thumbnail.ravel() for thumbnail in thumbnails]).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, 1e-6)
    informative = np.flatnonzero(length > 1.0)
    telling = informative[bits[informative].sum(axis=1) >= LEAST_BITS]

    def same_hash(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return _similarity(words[first], words[second]) >= SAME_PICTURE

    def same_thumbnail(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        same = _similarity(words[first], words[second]) >= CANDIDATE
        for start in range(0, len(same), AT_ONCE):
            at = start + np.flatnonzero(same[start : start + AT_ONCE])
            correlation = np.einsum("ij,ij->i", flat[first[at]], flat[second[at]])
            same[at] = correlation >= DUPLICATE_CORRELATION
        return same

    hashes, sides = bits[telling], _sides(flat[informative])
    most = MOST_PAIRS + MOST_PAIRS_EACH * count
    alike = _each_once(similar_pairs(hashes, hashes, _bits_differing(hashes)), telling)
    close = _each_once(similar_pairs(sides, sides, SIDES_DIFFERING), informative)
    pairs = np.union1d(
        _confirmed(alike, same_hash, count, most), _confirmed(close, same_thumbnail, count, most)
    )
    return list(_as_tuples(pairs, count))


def _sides(flat: np.ndarray) -> np.ndarray:
    """Return on which side of random hyperplanes thumbnails (n, pixels) lie, bool (n, `PLANES`)."""
    planes = np.random.default_rng(0).normal(size=(flat.shape[1], PLANES))
    sides: np.ndarray = flat @ planes.astype(np.float32) > 0
    return sides


def _bits_differing(bits: np.ndarray) -> int:
    """Return the maximum number of bits in which a hash can differ from another with a similarity
    of at least `SAME_PICTURE`.

    With a and b bits set, of which c are shared, c / (a + b - c) >= s, so (1 - s) / (1 + s) of
    a + b differ at most; and b <= a / s.
    """
    most_set = bits.sum(axis=1).max(initial=0)
    return int(most_set * (1 + 1 / SAME_PICTURE) * (1 - SAME_PICTURE) / (1 + SAME_PICTURE))


def _each_once(pairs: Pairs, positions: np.ndarray) -> Pairs:
    """Yield the pairs of different images by position, in one direction only."""
    for first, second in pairs:
        is_ordered = first < second
        yield positions[first[is_ordered]], positions[second[is_ordered]]


def _confirmed(
    pairs: Pairs,
    is_same: Callable[[np.ndarray, np.ndarray], np.ndarray],
    others: int,
    most: float = math.inf,
) -> np.ndarray:
    """Return the pairs that show the same image, once each, sorted, encoded as one number: the
    first position times the number of others, plus the second position.

    Raises:
        DatasetError: there are more than `most`.
    """
    confirmed, new, waiting = np.empty(0, np.int64), [], 0
    for first, second in pairs:
        same = is_same(first, second)
        new.append(first[same] * others + second[same])
        waiting += len(new[-1])
        if waiting > MOST_PAIRS:
            confirmed, new, waiting = np.unique(np.concatenate([confirmed, *new])), [], 0
        if len(confirmed) > most:
            raise DatasetError(
                f"More than {most:,} pairs of images are near-duplicates; please remove the copies."
            )
    return np.unique(np.concatenate([confirmed, *new]))


def _as_tuples(pairs: np.ndarray, others: int) -> Iterator[tuple[int, int]]:
    firsts, seconds = np.divmod(pairs, max(others, 1))
    return zip(firsts.tolist(), seconds.tolist(), strict=True)


def _words(bits: np.ndarray) -> np.ndarray:
    """Pack bits (n, 256) into four words, uint64 (n, 4), which compare faster."""
    return np.packbits(bits.astype(bool), axis=1).view(np.uint64)


def _similarity(words: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the similarity of each hash (`_words`) to the one at the same position, float32 (n,):
    the Tanimoto coefficient of the set bits.

    Areas that are black in both do not count.
    """
    shared, bits, other_bits = (
        np.bitwise_count(each).sum(axis=1, dtype=np.float32)
        for each in (words & others, words, others)
    )
    return np.asarray(shared / np.maximum(bits + other_bits - shared, 1), np.float32)
