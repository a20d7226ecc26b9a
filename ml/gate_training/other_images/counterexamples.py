"""Near-miss counterexamples to heads, which help the check generalize to unknown families.

Made from a head: bone darkened, inside replaced, parts shuffled, outline stretched. From scratch:
bodies of random ellipses, textures and bones. None of them depicts an anatomy or modality, so
held-out families remain unknown to the check.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ml.scans.slices import FloatArray, Slice

SIDE = 256
Maker = Callable[[np.random.Generator, FloatArray], FloatArray]


def of_head(rng: np.random.Generator, head: FloatArray) -> Slice:
    """Return a counterexample made from a preprocessed head, float32 (size, size) in 0..1, 0
    outside.
    """
    enlarged = np.asarray(
        cv2.resize(head, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.float32
    )
    image = MAKERS[int(rng.integers(len(MAKERS)))](rng, enlarged)
    noisy = image + rng.normal(0, rng.choice([0.0, 0.01, 0.04]), image.shape)
    return Slice(np.clip(noisy, 0, 1).astype(np.float32), "display")


def dark_bone(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """A gray-level curve on which bone is no brighter than brain, as in another modality."""
    soft = np.sort(rng.uniform(0.15, 1, 4))
    if rng.random() < 0.5:
        soft = soft[::-1]
    bone = rng.uniform(0, max(0.05, soft.mean() - 0.1))
    grays = np.array([0, 0.08, 0.25, 0.4, 0.55, 0.75, 0.92, 1])
    curve = np.array([0, rng.uniform(0, 1), *soft, bone, bone])
    return np.asarray(
        np.interp(cv2.GaussianBlur(head, (0, 0), rng.uniform(0.4, 1.5)), grays, curve), np.float32
    )


def other_inside(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """A skull with other contents: black, white, clouds, blobs."""
    inside = cv2.erode(
        (head > 0.02).astype(np.uint8),
        np.ones((5, 5), np.uint8),
        iterations=int(rng.integers(5, 12)),
    ).astype(bool)
    kind = rng.integers(4)
    if kind == 0:
        content = np.full(head.shape, rng.choice([0.0, 1.0]))
    elif kind == 1:
        content = _clouds(rng, int(rng.integers(4, 40)), rng.uniform(0.25, 0.6))
    elif kind == 2:
        content = (_clouds(rng, int(rng.integers(4, 30)), 0.3) > 0.5) * rng.uniform(0.6, 1)
    else:
        content = rng.random(head.shape)
    return np.asarray(np.where(inside, content, head), np.float32)


def shuffled(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """The parts of a head in another order."""
    parts = int(rng.integers(2, 6))
    step = SIDE // parts
    tiles = [
        head[r * step : (r + 1) * step, c * step : (c + 1) * step]
        for r in range(parts)
        for c in range(parts)
    ]
    order = rng.permutation(len(tiles))
    return np.block([[tiles[order[r * parts + c]] for c in range(parts)] for r in range(parts)])


def stretched(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """A head twice as elongated as possible, upright or lying."""
    longer = rng.uniform(1.9, 3)
    size = (SIDE, int(SIDE / longer)) if rng.random() < 0.7 else (int(SIDE / longer), SIDE)
    thin = cv2.resize(
        np.rot90(head) if size[0] > size[1] else head, size, interpolation=cv2.INTER_AREA
    )
    above, beside = SIDE - size[1], SIDE - size[0]
    margins = above // 2, above - above // 2, beside // 2, beside - beside // 2
    return np.asarray(cv2.copyMakeBorder(thin, *margins, cv2.BORDER_CONSTANT, value=0), np.float32)


def inverted(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """An inverted head."""
    return 1 - head if rng.random() < 0.5 else np.where(head > 0.02, 1.02 - head, 0)


def body(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """A body of random ellipses: layers that do not get brighter outward, textures, bones
    inside.
    """
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]

    def inside(middle_x: float, middle_y: float, wide: float, high: float) -> FloatArray:
        angle = np.arctan2((y - middle_y) / high, (x - middle_x) / wide)
        ripple = sum(
            rng.normal(0, 0.05 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5)
        )
        return np.asarray(np.hypot((x - middle_x) / wide, (y - middle_y) / high) < 1 + ripple)

    values = np.full((SIDE, SIDE), rng.choice([0.0, 0.0, rng.uniform(0, 1)]))
    wide, high = rng.uniform(0.4, 0.95, 2)
    layers = rng.uniform(0.1, 1, int(rng.integers(1, 4)))
    # unlike bone, the outermost layer is not the brightest
    layers[-1] = max(layers[-1], layers[0] - 0.05)
    for number, gray in enumerate(layers):
        shrink = 1 - number * rng.uniform(0.03, 0.2)
        values[inside(0, 0, wide * shrink, high * shrink)] = gray
    for _ in range(rng.integers(0, 12)):
        radius = rng.uniform(0.03, 0.35)
        middle = rng.uniform(-0.65, 0.65, 2) * (wide, high)
        where = inside(middle[0], middle[1], radius, radius * rng.uniform(0.4, 1.4))
        values[where] = rng.uniform(0, 1)
        if rng.random() < 0.3:  # a bone with a bright shell
            values[where] = 1
            values[inside(middle[0], middle[1], radius * 0.6, radius * 0.6)] = rng.uniform(0.2, 0.9)
    if rng.random() < 0.5:
        values = values * (
            1 + (_clouds(rng, int(rng.integers(3, 60)), 0.3) - 0.5) * rng.uniform(0.2, 1.5)
        )
    return np.asarray(
        cv2.GaussianBlur(values.astype(np.float32), (0, 0), rng.choice([0.6, 1.0, 4.0])), np.float32
    )


def texture(rng: np.random.Generator, head: FloatArray) -> FloatArray:
    """A texture that fills the image, possibly cropped to the outline of the head."""
    values = _clouds(rng, int(rng.integers(3, 120)), rng.uniform(0.15, 0.5))
    return np.where(head > 0.02, values, 0) if rng.random() < 0.4 else values


MAKERS: tuple[Maker, ...] = (
    dark_bone,
    dark_bone,
    other_inside,
    shuffled,
    stretched,
    inverted,
    body,
    body,
    body,
    texture,
)


def _clouds(rng: np.random.Generator, cells: int, contrast: float) -> FloatArray:
    coarse = rng.normal(0.5, contrast, (cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), 0, 1)
