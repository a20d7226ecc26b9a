"""Changes of a training picture that leave its label true, and bleeds drawn or moved into pictures that have none.

Only ever applied to images that a fold may learn from. A picture is a model's input, float32 (size, size) in 0..1 with 0 outside the
head; its outline of blood, uint8 (m, m), is moved along with it. Every function draws from the generator that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.images import FloatArray

Mask = NDArray[np.uint8]

FAINTEST = 0.05
"""A drawn bleed is at least so much brighter than what was there: blood that nobody could see must not be called blood."""

MIDDLE_GREYS = 0.3, 0.55
"""Brain lies between them in a brain window; contrast changes about a grey in there."""

NOT_DRAWN = 255
"""The value of an outline where nobody has drawn."""


@dataclass(frozen=True)
class Strength:
    """How far a picture is changed; each figure is the largest change, drawn evenly up to it.

    Attributes:
        flip: probability of a mirrored head.
        turn_degrees, shift, zoom: rotation; shift and scale as a share of the picture.
        elastic_px: amplitude of a smooth warp, in pixels of a picture 224 wide.
        contrast: logarithms of the smallest and largest factor by which grey values are spread about a middle grey, as another window does.
        brightness, gamma: share that is added to grey values, by which they are bent.
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


def vary(image: FloatArray, mask: Mask, random: np.random.Generator, strength: Strength = FULL) -> tuple[FloatArray, Mask]:
    """Return a changed picture (size, size) and its outline (m, m): turned, moved, scaled, warped; other greys, sharpness and noise.

    One `remap` makes all geometric changes, so that a picture is interpolated once.
    """
    size = image.shape[0]
    x, y = _warp(size, random, strength)
    image = _float(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0))
    ratio = mask.shape[0] / size
    fine = cv2.resize(np.stack([x, y], axis=-1), mask.shape[::-1], interpolation=cv2.INTER_AREA) * ratio + (ratio - 1) / 2
    moved = cv2.remap(mask, fine[..., 0], fine[..., 1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return _regrade(image, random, strength), np.asarray(moved, np.uint8)


def children(image: FloatArray, count: int, seed: int) -> FloatArray:
    """Return the picture (s, s, 1) and count - 1 changed copies of it, float32 (count, s, s, 1): the paper's enlargement of a data set.

    The same seed gives the same copies.
    """
    random = np.random.default_rng(seed)
    none = np.zeros((1, 1), np.uint8)
    copies = [vary(image[..., 0], none, random)[0] for _ in range(count - 1)]
    return np.stack([image[..., 0], *copies]).astype(np.float32)[..., np.newaxis]


def _warp(size: int, random: np.random.Generator, strength: Strength) -> tuple[FloatArray, FloatArray]:
    """Return for each pixel of the changed picture where it comes from: x and y, float32 (size, size)."""
    angle = np.radians(random.uniform(-1, 1) * strength.turn_degrees)
    scale = 1 + random.uniform(-1, 1) * strength.zoom
    aspect = 1 + random.uniform(-0.5, 0.5) * strength.zoom
    mirror = -1.0 if random.random() < strength.flip else 1.0
    shift = random.uniform(-1, 1, 2) * strength.shift * size
    centre = (size - 1) / 2
    grid = np.arange(size, dtype=np.float32) - np.float32(centre)
    column, row = np.meshgrid(grid, grid)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x = mirror * (cos * column - sin * row) * aspect + centre + shift[0]
    y = (sin * column + cos * row) / aspect + centre + shift[1]
    if strength.elastic_px:
        # Random shifts on a coarse grid, made smooth: P. Simard, D. Steinkraus, J. Platt 2003.
        coarse = random.normal(0, 1, (2, 6, 6)).astype(np.float32) * np.float32(strength.elastic_px * random.random() * size / 224)
        x = x + cv2.resize(coarse[0], (size, size), interpolation=cv2.INTER_CUBIC)
        y = y + cv2.resize(coarse[1], (size, size), interpolation=cv2.INTER_CUBIC)
    return x.astype(np.float32), y.astype(np.float32)


def _regrade(image: FloatArray, random: np.random.Generator, strength: Strength) -> FloatArray:
    """Return the picture as another scanner, window or screen might show it. What is outside the head stays 0."""
    size = image.shape[0]
    outside = image <= 0.004
    if random.random() < strength.coarse:
        smaller = max(16, int(size * random.uniform(0.35, 0.9)))
        small = cv2.resize(image, (smaller, smaller), interpolation=cv2.INTER_AREA)
        image = _float(cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR))
    if random.random() < strength.blur:
        image = _float(cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.2) * size / 224))
    bend = np.exp(random.uniform(-1, 1) * strength.gamma)
    spread = np.exp(random.uniform(*strength.contrast))
    middle = random.uniform(*MIDDLE_GREYS)
    lift = random.uniform(-1, 1) * strength.brightness
    if random.random() < strength.sharpening:  # the kernels of scanners differ
        reach = random.uniform(0.7, 2.0) * size / 224
        image = image + np.float32(random.uniform(0.3, 1.5)) * (image - _float(cv2.GaussianBlur(image, (0, 0), reach)))
    image = np.power(np.clip(image, 0, 1), bend)
    image = (image - middle) * spread + middle + lift
    if strength.noise:
        deviation = random.uniform(0, strength.noise)
        if random.random() < 0.5:  # the noise of a CT has a grain; that of a camera has none
            grain = cv2.GaussianBlur(random.standard_normal((size, size), dtype=np.float32), (0, 0), 1.0) * 3.0
        else:
            grain = random.standard_normal((size, size), dtype=np.float32)
        image = image + grain * np.float32(deviation)
    image = np.clip(image, 0, 1)
    image[outside] = 0
    return image.astype(np.float32)


def inside_of_skull(image: FloatArray) -> NDArray[np.bool_]:
    """Return the space inside the skull, bool (size, size); all False where no closed ring of bone shows, as at the skull base."""
    size = image.shape[0]
    none = np.zeros(image.shape, bool)
    bone = (image > 0.93).astype(np.uint8)
    reach = max(3, round(size / 56)) | 1
    closed = cv2.morphologyEx(bone, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - np.asarray(closed, np.uint8), connectivity=4)
    border = set(np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])))
    areas = [(int(stats[part, cv2.CC_STAT_AREA]), part) for part in range(1, count) if part not in border]
    if not areas or max(areas)[0] < 0.12 * size * size:
        return none
    space = (parts == max(areas)[1]).astype(np.uint8)
    space = cv2.morphologyEx(space, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    holes, _ = cv2.findContours(space, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(space)
    if holes:
        cv2.drawContours(filled, [max(holes, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    shown = image[filled.astype(bool)]
    # Brain is grey and even; a face with its sinuses and bones is not.
    if not len(shown) or np.mean(shown < 0.12) > 0.25 or np.mean(shown > 0.93) > 0.1:
        return none
    return filled.astype(bool)


def with_drawn_bleed(image: FloatArray, mask: Mask, random: np.random.Generator) -> tuple[FloatArray, Mask] | None:
    """Return the picture with a bleed drawn into it, and its outline; None where the picture has no room for one.

    The shapes are those of the textbook: a crescent (subdural) or a lens (epidural) along the bone, an uneven ball with a dark rim
    (intraparenchymal), blood in what was dark fluid (subarachnoid, intraventricular).
    """
    space = inside_of_skull(image)
    if not space.any():
        return None
    shapes: tuple[Callable[..., FloatArray], ...] = (_crescent, _crescent, _lens, _ball, _ball, _filled_fluid)
    image = image.copy()
    amount = shapes[int(random.integers(len(shapes)))](image, space, random)
    amount = _float(cv2.GaussianBlur(amount, (0, 0), random.uniform(0.5, 1.3) * image.shape[0] / 224) * space)
    if float(amount.sum()) < 25 * (image.shape[0] / 224) ** 2:
        return None
    brain = float(np.median(image[space]))
    smooth = _float(cv2.GaussianBlur(random.standard_normal(image.shape, dtype=np.float32), (0, 0), random.uniform(1, 4)))
    texture = smooth / max(float(smooth.std()), 1e-6) * np.float32(random.uniform(0.01, 0.05))
    grain = image - cv2.GaussianBlur(image, (0, 0), 1.5)  # of the picture itself, so that the bleed is no smoother than the brain
    blood = np.clip(brain + random.uniform(0.12, 0.42), 0, 0.97) + texture + grain
    drawn = np.clip(image * (1 - amount) + np.maximum(blood, image) * amount, 0, 1).astype(np.float32)
    shown = amount > 0.4
    if not shown.any() or float((drawn - image)[shown].mean()) < FAINTEST:
        return None
    return drawn, _outlined(shown, mask)


def with_moved_bleed(
    image: FloatArray, mask: Mask, donor: FloatArray, donor_mask: Mask, random: np.random.Generator
) -> tuple[FloatArray, Mask] | None:
    """Return the picture with the outlined bleed of another patient in the same place of the head; None where it does not fit.

    Both heads fill their frames, so a place in one is nearly the same place in the other.
    """
    space = inside_of_skull(image)
    size = image.shape[0]
    outline = _float(cv2.resize((donor_mask == 1).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR))
    if not space.any() or float(outline.sum()) < 20:
        return None
    if random.random() < 0.5:
        donor, outline = donor[:, ::-1], outline[:, ::-1]
    move = np.array([[1, 0, random.uniform(-0.04, 0.04) * size], [0, 1, random.uniform(-0.04, 0.04) * size]], np.float32)
    donor = _float(cv2.warpAffine(np.ascontiguousarray(donor), move, (size, size)))
    outline = _float(cv2.warpAffine(np.ascontiguousarray(outline), move, (size, size)))
    reach = max(3, round(size / 45)) | 1
    amount = cv2.GaussianBlur(cv2.dilate(outline, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))), (0, 0), reach / 3)
    if float((outline * space).sum()) < 0.6 * float(outline.sum()):
        return None
    near = (cv2.dilate((outline > 0.3).astype(np.uint8), np.ones((3 * reach, 3 * reach), np.uint8)) > 0) & (outline < 0.1) & space
    shift = float(np.median(image[near]) - np.median(donor[near])) if near.sum() > 20 else 0.0
    amount = np.clip(amount, 0, 1) * space
    drawn = np.clip(image * (1 - amount) + np.clip(donor + shift, 0, 0.98) * amount, 0, 1).astype(np.float32)
    return drawn, _outlined((outline > 0.4) & space, mask)


def _outlined(blood: NDArray[np.bool_], mask: Mask) -> Mask:
    """Return the outline in the size of `mask`, joined with what it already outlines."""
    small = cv2.resize(blood.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0.3
    return np.where(small | (mask == 1), 1, 0).astype(np.uint8)


def _blob(size: int, centre: tuple[float, float], radius: float, random: np.random.Generator) -> FloatArray:
    """Return an uneven ball, float32 (size, size): 1 inside, 0 outside."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    angle, stretch = random.uniform(0, np.pi), random.uniform(0.55, 1.0)
    down, right = rows - centre[0], columns - centre[1]
    along, across = np.cos(angle) * right + np.sin(angle) * down, (-np.sin(angle) * right + np.cos(angle) * down) / stretch
    wobble = cv2.resize(random.normal(0, 0.3, (9, 9)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return _float(np.hypot(along, across) / max(radius, 1) + wobble < 1)


def _along_bone(space: NDArray[np.bool_], random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return the depth below the bone in pixels, and how near a pixel's direction is to a random one (1 there, 0 and less far away)."""
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(space)
    grid_rows, grid_columns = np.mgrid[: space.shape[0], : space.shape[1]].astype(np.float32)
    direction = np.arctan2(grid_rows - rows.mean(), grid_columns - columns.mean())
    towards, half_width = random.uniform(-np.pi, np.pi), random.uniform(0.35, 1.5)
    away = np.abs(np.angle(np.exp(1j * (direction - towards))))
    return depth.astype(np.float32), (1 - (away / half_width) ** 2).astype(np.float32)


def _crescent(image: FloatArray, space: NDArray[np.bool_], random: np.random.Generator) -> FloatArray:
    depth, near = _along_bone(space, random)
    thickness = random.uniform(2.5, 11) * image.shape[0] / 224
    wobble = cv2.resize(random.normal(1, 0.2, (8, 8)).astype(np.float32), image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    return _float((depth < thickness * np.sqrt(np.clip(near, 0, 1)) * wobble) & space & (near > 0))


def _lens(image: FloatArray, space: NDArray[np.bool_], random: np.random.Generator) -> FloatArray:
    depth, _ = _along_bone(space, random)
    edge = np.argwhere(space & (depth < 2.5))
    row, column = edge[int(random.integers(len(edge)))]
    size = image.shape[0]
    return _blob(size, (float(row), float(column)), random.uniform(10, 32) * size / 224, random) * space


def _ball(image: FloatArray, space: NDArray[np.bool_], random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    room = np.argwhere(depth > random.uniform(3, 25) * size / 224)
    if not len(room):
        return np.zeros_like(image)
    row, column = room[int(random.integers(len(room)))]
    radius = np.exp(random.uniform(np.log(4), np.log(26))) * size / 224
    blood = _blob(size, (float(row), float(column)), radius, random)
    if random.random() < 0.6:  # swollen brain around it is darker
        rim = cv2.GaussianBlur(cv2.dilate(blood, np.ones((7, 7), np.uint8)), (0, 0), 3) * space
        image -= rim * np.float32(random.uniform(0.02, 0.1)) * (blood < 0.5)
    return blood * space


def _filled_fluid(image: FloatArray, space: NDArray[np.bool_], random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    smooth = cv2.GaussianBlur(image, (0, 0), 1.2 * size / 224)
    fluid = (smooth < np.median(image[space]) - 0.06) & space
    rows, columns = np.nonzero(fluid)
    if len(rows) < 30:
        return np.zeros_like(image)
    chosen = int(random.integers(len(rows)))
    region = _blob(size, (float(rows[chosen]), float(columns[chosen])), random.uniform(18, 60) * size / 224, random)
    return (region * fluid).astype(np.float32)


def _float(values: NDArray[Any]) -> FloatArray:
    """Return OpenCV's answer, which its stubs call an array of anything, as the float32 that it is."""
    return np.asarray(values, np.float32)
