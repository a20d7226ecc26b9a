"""Variants of head CT as users submit it, with other windows, sizes, tilts, gray levels, margins
and annotations; and head phantoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import cv2
import numpy as np

from ml.scans.phantoms import Kind, phantom
from ml.scans.slices import FloatArray, Slice, window

WINDOWS_HU = (
    (40, 80),
    (80, 200),
    (40, 150),
    (40, 100),
    (600, 2800),
    (40, 400),
    (300, 1500),
    (35, 60),
)
LETTERING = ("R", "L", "A", "B", "a)", "W 80 L 40", "10 cm", "SE 2 IM 14", "120 kV", "CT HEAD")


def varied(rng: np.random.Generator, slice_: Slice) -> Slice:
    """Return a random variant of a head CT."""
    gray = (
        window(slice_.pixels, *WINDOWS_HU[int(rng.integers(len(WINDOWS_HU)))])
        if slice_.unit == "hu"
        else slice_.pixels
    )
    gray = np.array(gray, np.float32)
    height, width = gray.shape
    if rng.random() < 0.6:
        matrix = cv2.getRotationMatrix2D(
            (width / 2, height / 2),
            rng.uniform(-25, 25) * (rng.random() < 0.5),
            rng.uniform(0.8, 1.15),
        )
        gray = _float(cv2.warpAffine(gray, matrix, (width, height)))
    gray = _in_other_grays(rng, gray)
    if rng.random() < 0.3:
        gray = _float(cv2.GaussianBlur(gray, (0, 0), rng.uniform(0.5, 2.5) * max(gray.shape) / 512))
    if rng.random() < 0.3:
        scale = rng.integers(72, 200) / max(gray.shape)
        size = max(40, int(width * scale)), max(40, int(height * scale))
        gray = _float(cv2.resize(gray, size, interpolation=cv2.INTER_AREA))
    if rng.random() < 0.3:
        gray = _float(gray + rng.normal(0, rng.uniform(0, 0.05), gray.shape))
    if rng.random() < 0.3:
        margins = [int(px) for px in rng.integers(0, gray.shape[0] // 4, 4)]
        top, bottom, left, right = margins
        gray = _float(
            cv2.copyMakeBorder(
                gray,
                top,
                bottom,
                left,
                right,
                cv2.BORDER_CONSTANT,
                value=float(rng.choice([0, 0, 1, 0.5])),
            )
        )
    if rng.random() < 0.3:
        gray = np.maximum(gray, _lettering(rng, *gray.shape))
    return Slice(np.ascontiguousarray(np.clip(gray, 0, 1)), "display")


def phantom_heads(n: int) -> Iterator[Slice]:
    """Yield phantoms with and without hemorrhage, alternately in HU and varied."""
    for seed in range(n):
        kind: Kind = get_args(Kind)[seed % 4]
        slice_ = Slice(
            phantom(seed, seed % 2 == 0, kind, size=(256, 512, 128)[seed % 3]).astype(np.float32),
            "hu",
        )
        yield slice_ if seed % 2 else varied(np.random.default_rng([2, seed]), slice_)


def _in_other_grays(rng: np.random.Generator, gray: FloatArray) -> FloatArray:
    """Randomly change brightness and contrast."""
    if rng.random() < 0.5:
        gray = _float(np.clip(gray, 0, 1) ** rng.uniform(0.6, 1.6))
    if rng.random() < 0.4:
        gray = _float(np.clip((gray - rng.uniform(-0.1, 0.15)) * rng.uniform(0.7, 1.3), 0, 1))
    return _float(gray * rng.uniform(0.6, 1)) if rng.random() < 0.3 else gray


def _lettering(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Add annotations in the corners as in viewers and figures, white or light gray."""
    canvas = np.zeros((height, width), np.uint8)
    size = height / 512 * rng.uniform(0.5, 1.2)
    for corner in range(4):
        if rng.random() < 0.6:
            x, y = (
                (width // 40, width * 3 // 4)[corner % 2],
                (height // 14, height * 39 // 40)[corner // 2],
            )
            for line in range(int(rng.integers(1, 4))):
                down = int(line * 28 * size) * (1 if corner < 2 else -1)
                text = str(rng.choice(LETTERING))
                cv2.putText(
                    canvas,
                    text,
                    (x, y + down),
                    cv2.FONT_HERSHEY_SIMPLEX,
                    size,
                    int(rng.integers(150, 256)),
                    1,
                    cv2.LINE_AA,
                )
    return _float(canvas) / np.float32(255)


def _float(values: object) -> FloatArray:
    return np.asarray(values, np.float32)
