"""Changes of a training picture that leave its label true.

Only ever applied to images that a fold may learn from. A picture is a model's input, float32 (size,
size) in 0..1 with 0 outside the head; its outline of blood, uint8 (m, m), is moved along with it.
Every function draws from the generator that it is given.
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
"""Brain lies between them in a brain window; contrast changes about a gray in there."""

NOT_DRAWN = 255
"""The value of an outline where nobody has drawn."""


@dataclass(frozen=True)
class Strength:
    """How far a picture is changed; each figure is the largest change, drawn evenly up to it.

    Attributes:
        flip: probability of a mirrored head.
        turn_degrees, shift, zoom: rotation; shift and scale as a share of the picture.
        elastic_px: amplitude of a smooth warp, in pixels of a picture 224 wide.
        contrast: logarithms of the smallest and largest factor by which gray values are spread
            about a middle gray, as another window does.
        brightness, gamma: share that is added to gray values, by which they are bent.
        sharpening, blur, coarse: probability of sharp edges, of a blur, of a loss of resolution.
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
    """Return a changed picture (size, size) and its outline (m, m): turned, moved, scaled, warped;
    other grays, sharpness and noise.

    One `remap` makes all geometric changes, so that a picture is interpolated once.
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
    """Return the picture (s, s, 1) and count - 1 changed copies of it, float32 (count, s, s, 1):
    the paper's enlargement of a data set.

    The same seed gives the same copies.
    """
    random = np.random.default_rng(seed)
    none = np.zeros((1, 1), np.uint8)
    copies = [vary(image[..., 0], none, random)[0] for _ in range(count - 1)]
    return np.stack([image[..., 0], *copies]).astype(np.float32)[..., np.newaxis]


def _warp(
    size: int, random: np.random.Generator, strength: Strength
) -> tuple[FloatArray, FloatArray]:
    """Return for each pixel of the changed picture where it comes from: x and y, float32 (size,
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
        # Random shifts on a coarse grid, made smooth: P. Simard, D. Steinkraus, J. Platt 2003.
        coarse = random.normal(0, 1, (2, 6, 6)).astype(np.float32) * np.float32(
            strength.elastic_px * random.random() * size / 224
        )
        x = x + cv2.resize(coarse[0], (size, size), interpolation=cv2.INTER_CUBIC)
        y = y + cv2.resize(coarse[1], (size, size), interpolation=cv2.INTER_CUBIC)
    return x.astype(np.float32), y.astype(np.float32)


def _regrade(image: FloatArray, random: np.random.Generator, strength: Strength) -> FloatArray:
    """Return the picture as another scanner, window or screen might show it. What is outside the
    head stays 0.
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
    if random.random() < strength.sharpening:  # the kernels of scanners differ
        reach = random.uniform(0.7, 2.0) * size / 224
        image = image + np.float32(random.uniform(0.3, 1.5)) * (
            image - as_float(cv2.GaussianBlur(image, (0, 0), reach))
        )
    image = np.power(np.clip(image, 0, 1), bend)
    image = (image - middle) * spread + middle + lift
    if strength.noise:
        deviation = random.uniform(0, strength.noise)
        if random.random() < 0.5:  # the noise of a CT has a grain; that of a camera has none
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
    """Return OpenCV's answer, which its stubs call an array of anything, as the float32 that it
    is.
    """
    return np.asarray(values, np.float32)
