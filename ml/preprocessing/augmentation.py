"""Label-preserving augmentation of training images.

Applied to training images only. An image is a model's input, float32 (size, size) in 0..1 with 0
outside the head; its segmentation mask, uint8 (m, m), is transformed with it. Every function draws
from the given generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import FloatArray

Mask = NDArray[np.uint8]

MIDDLE_GRAYS = 0.3, 0.55
"""The gray levels of brain in a brain window; contrast changes are centered on a gray level in this
range.
"""

NOT_DRAWN = 255
"""The mask value where there is no annotation."""


@dataclass(frozen=True)
class Strength:
    """Strength of the augmentation; changes are uniformly distributed up to these limits.

    Attributes:
        flip: probability of a mirrored head.
        turn_degrees, shift, zoom: rotation; shift and scale relative to the image.
        elastic_px: amplitude of an elastic deformation, in pixels of an image 224 wide.
        contrast: logarithms of the smallest and largest contrast factor about a middle gray, like a
            change of window width.
        brightness, gamma: offset of gray values, and their gamma correction.
        sharpening, blur, coarse: probability of sharpening, blurring, and lower resolution.
        noise: standard deviation of added noise.
    """

    flip: float = 0.5
    turn_degrees: float = 20.0
    shift: float = 0.06
    zoom: float = 0.15
    elastic_px: float = 4.0
    contrast: tuple[float, float] = (-0.5, 0.75)
    brightness: float = 0.1
    gamma: float = 0.25
    sharpening: float = 0.3
    blur: float = 0.3
    coarse: float = 0.3
    noise: float = 0.05


FULL = Strength()


def vary(
    image: FloatArray, mask: Mask, random: np.random.Generator, strength: Strength = FULL
) -> tuple[FloatArray, Mask]:
    """Return an augmented image (size, size) and its mask (m, m): rotated, shifted, scaled, warped;
    other gray levels, sharpness and noise.

    A single `remap` applies all geometric changes, so that an image is interpolated once.
    """
    size = image.shape[0]
    x, y = _warp(size, random, strength)
    image = as_float(
        cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    )
    ratio = mask.shape[0] / size
    fine = (
        cv2.resize(np.stack([x, y], axis=-1), mask.shape[::-1], interpolation=cv2.INTER_AREA)
        * ratio
        + (ratio - 1) / 2
    )
    moved = cv2.remap(
        mask,
        fine[..., 0],
        fine[..., 1],
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return _regrade(image, random, strength), np.asarray(moved, np.uint8)


def augmented_copies(image: FloatArray, count: int, seed: int) -> FloatArray:
    """Return the image (s, s, 1) and count - 1 augmented copies of it, float32 (count, s, s, 1), as
    in the paper.

    The same seed gives the same copies.
    """
    random = np.random.default_rng(seed)
    none = np.zeros((1, 1), np.uint8)
    copies = [vary(image[..., 0], none, random)[0] for _ in range(count - 1)]
    return np.stack([image[..., 0], *copies]).astype(np.float32)[..., np.newaxis]


def _warp(
    size: int, random: np.random.Generator, strength: Strength
) -> tuple[FloatArray, FloatArray]:
    """Return the source coordinates x and y of each pixel of the augmented image, float32 (size,
    size).
    """
    angle = np.radians(random.uniform(-1, 1) * strength.turn_degrees)
    scale = 1 + random.uniform(-1, 1) * strength.zoom
    aspect = 1 + random.uniform(-0.5, 0.5) * strength.zoom
    mirror = -1.0 if random.random() < strength.flip else 1.0
    shift = random.uniform(-1, 1, 2) * strength.shift * size
    center = (size - 1) / 2
    grid = np.arange(size, dtype=np.float32) - np.float32(center)
    column, row = np.meshgrid(grid, grid)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x = mirror * (cos * column - sin * row) * aspect + center + shift[0]
    y = (sin * column + cos * row) / aspect + center + shift[1]
    if strength.elastic_px:
        # Smoothed random displacements on a coarse grid: P. Simard, D. Steinkraus, J. Platt 2003.
        coarse = random.normal(0, 1, (2, 6, 6)).astype(np.float32) * np.float32(
            strength.elastic_px * random.random() * size / 224
        )
        x = x + cv2.resize(coarse[0], (size, size), interpolation=cv2.INTER_CUBIC)
        y = y + cv2.resize(coarse[1], (size, size), interpolation=cv2.INTER_CUBIC)
    return x.astype(np.float32), y.astype(np.float32)


def _regrade(image: FloatArray, random: np.random.Generator, strength: Strength) -> FloatArray:
    """Vary the gray levels as other scanners, windows or screens do; the area outside the head
    stays 0.
    """
    size = image.shape[0]
    outside = image <= 0.004
    if random.random() < strength.coarse:
        smaller = max(16, int(size * random.uniform(0.35, 0.9)))
        small = cv2.resize(image, (smaller, smaller), interpolation=cv2.INTER_AREA)
        image = as_float(cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR))
    if random.random() < strength.blur:
        image = as_float(cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.2) * size / 224))
    bend = np.exp(random.uniform(-1, 1) * strength.gamma)
    spread = np.exp(random.uniform(*strength.contrast))
    middle = random.uniform(*MIDDLE_GRAYS)
    lift = random.uniform(-1, 1) * strength.brightness
    if random.random() < strength.sharpening:  # reconstruction kernels differ
        reach = random.uniform(0.7, 2.0) * size / 224
        image = image + np.float32(random.uniform(0.3, 1.5)) * (
            image - as_float(cv2.GaussianBlur(image, (0, 0), reach))
        )
    image = np.power(np.clip(image, 0, 1), bend)
    image = (image - middle) * spread + middle + lift
    if strength.noise:
        deviation = random.uniform(0, strength.noise)
        if random.random() < 0.5:  # CT noise is correlated; that of a camera is not
            grain = (
                cv2.GaussianBlur(
                    random.standard_normal((size, size), dtype=np.float32), (0, 0), 1.0
                )
                * 3.0
            )
        else:
            grain = random.standard_normal((size, size), dtype=np.float32)
        image = image + grain * np.float32(deviation)
    image = np.clip(image, 0, 1)
    image[outside] = 0
    return image.astype(np.float32)


def as_float(values: NDArray[Any]) -> FloatArray:
    """Cast OpenCV's result, which its stubs type as any array, to float32."""
    return np.asarray(values, np.float32)
