"""Computer-generated images: blank, gradients, noise, text, charts, screenshots, shapes."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from ml.scans.slices import FloatArray, Slice

Canvas = NDArray[np.uint8]

WORDS = (
    "report",
    "normal",
    "patient",
    "the",
    "of",
    "chest",
    "invoice",
    "total",
    "Figure",
    "results",
    "2021",
    "and",
    "view",
    "save",
    "no",
)


def flat(rng: np.random.Generator) -> Slice:
    """A uniform gray with little or no noise."""
    picture = np.full(_size(rng), rng.random(), np.float32)
    return _shown(picture + rng.normal(0, rng.choice([0.002, 0.01]), picture.shape))


def gradient(rng: np.random.Generator) -> Slice:
    """A linear or radial gradient."""
    rows, columns = _size(rng)
    down, across = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    middle = rng.random(2)
    values = (
        np.hypot(down - middle[0], across - middle[1])
        if rng.random() < 0.5
        else np.cos(angle) * down + np.sin(angle) * across
    )
    values = (values - values.min()) / np.ptp(values)
    return _shown(1 - values if rng.random() < 0.3 else values ** rng.uniform(0.5, 2))


def noise(rng: np.random.Generator) -> Slice:
    """White noise."""
    shape = _size(rng)
    kind = rng.integers(3)
    values = (
        rng.random(shape)
        if kind == 0
        else rng.normal(0.5, rng.uniform(0.05, 0.3), shape)
        if kind == 1
        else rng.random(shape) < 0.1
    )
    return _shown(np.asarray(values, np.float32))


def clouds(rng: np.random.Generator) -> Slice:
    """Multi-scale noise, as in clouds and marble."""
    shape = _size(rng)
    values = np.zeros(shape, np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = rng.random((cells, cells)).astype(np.float32)
        fine = np.asarray(
            cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32
        )
        values += fine / np.float32(cells ** rng.uniform(0.3, 1.2))
    values = (values - values.min()) / np.ptp(values)
    return _shown(values if rng.random() < 0.6 else (values > 0.5).astype(np.float32))


def text_page(rng: np.random.Generator) -> Slice:
    """A page of text, dark on light or light on dark."""
    canvas = _canvas(rng, 255)
    _write_lines(rng, canvas, 0, 0, canvas.shape[1], canvas.shape[0])
    return _maybe_inverted(rng, canvas, 0.3)


def chart(rng: np.random.Generator) -> Slice:
    """A bar, line, scatter or pie chart."""
    canvas = _canvas(rng, 255)
    rows, columns = canvas.shape
    kind = rng.integers(4)
    if kind == 3:
        start = 0
        for share in rng.dirichlet(np.ones(5)) * 360:
            gray = int(rng.integers(40, 220))
            cv2.ellipse(
                canvas,
                (columns // 2, rows // 2),
                (min(rows, columns) // 3,) * 2,
                0,
                start,
                start + share,
                gray,
                -1,
            )
            start += share
    else:
        cv2.line(canvas, (columns // 8, rows // 10), (columns // 8, rows * 7 // 8), 0, 2)
        cv2.line(canvas, (columns // 8, rows * 7 // 8), (columns * 9 // 10, rows * 7 // 8), 0, 2)
        n = int(rng.integers(4, 12))
        xs = np.linspace(columns * 0.18, columns * 0.85, n).astype(int)
        ys = (rows * rng.uniform(0.15, 0.85, n)).astype(int)
        gray = int(rng.integers(20, 180))
        for x, y in zip(xs, ys, strict=True):
            if kind == 0:
                cv2.rectangle(
                    canvas,
                    (int(x) - columns // 40, int(y)),
                    (int(x) + columns // 40, rows * 7 // 8),
                    gray,
                    -1,
                )
            elif kind == 1:
                cv2.circle(canvas, (int(x), int(y)), max(2, columns // 80), gray, -1)
        if kind == 2:
            cv2.polylines(canvas, [np.stack([xs, ys], axis=1).astype(np.int32)], False, gray, 2)
    _write(rng, canvas, columns // 4, rows // 12)
    return _maybe_inverted(rng, canvas, 0.2)


def screenshot(rng: np.random.Generator) -> Slice:
    """Windows with title bars, buttons, text and fields."""
    canvas = _canvas(rng, int(rng.integers(0, 256)))
    rows, columns = canvas.shape
    for _ in range(rng.integers(2, 6)):
        left, top = int(rng.integers(0, columns * 2 // 3)), int(rng.integers(0, rows * 2 // 3))
        right, bottom = (
            left + int(rng.integers(columns // 5, columns)),
            top + int(rng.integers(rows // 5, rows)),
        )
        cv2.rectangle(canvas, (left, top), (right, bottom), int(rng.integers(0, 256)), -1)
        cv2.rectangle(canvas, (left, top), (right, top + rows // 20), int(rng.integers(0, 256)), -1)
        _write_lines(rng, canvas, left, top + rows // 20, min(right, columns), min(bottom, rows))
    return _shown(canvas / 255)


def logo(rng: np.random.Generator) -> Slice:
    """One or two bold shapes, possibly with a word."""
    canvas = _canvas(rng, int(rng.choice([0, 255, 230])))
    rows, columns = canvas.shape
    for _ in range(rng.integers(1, 3)):
        corners = int(rng.integers(3, 9))
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + rng.uniform(0, 1)
        radii = min(rows, columns) * rng.uniform(0.15, 0.42, corners if rng.random() < 0.5 else 1)
        points = np.stack(
            [columns / 2 + radii * np.cos(angles), rows / 2 + radii * np.sin(angles)], axis=1
        )
        cv2.fillPoly(canvas, [points.astype(np.int32)], int(rng.integers(0, 256)))
    _write(rng, canvas, columns // 4, rows * 9 // 10)
    return _shown(canvas / 255)


def discs(rng: np.random.Generator) -> Slice:
    """One or several uniform discs."""
    canvas = _canvas(rng, int(rng.choice([0, 0, 255])))
    rows, columns = canvas.shape
    for _ in range(rng.choice([1, 1, 2, 6])):
        middle = int(columns * rng.uniform(0.3, 0.7)), int(rows * rng.uniform(0.3, 0.7))
        axes = int(columns * rng.uniform(0.08, 0.45)), int(rows * rng.uniform(0.08, 0.45))
        cv2.ellipse(
            canvas, middle, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(60, 256)), -1
        )
    return _shown(canvas / 255 + rng.normal(0, 0.02, canvas.shape))


def checkerboard(rng: np.random.Generator) -> Slice:
    """Squares or stripes."""
    rows, columns = _size(rng)
    period = rng.uniform(8, 80)
    angle = rng.uniform(0, np.pi)
    down, across = np.mgrid[0:rows, 0:columns]
    along = np.sin(2 * np.pi * (np.cos(angle) * across + np.sin(angle) * down) / period)
    other = np.sin(2 * np.pi * (-np.sin(angle) * across + np.cos(angle) * down) / period)
    values = along * other if rng.random() < 0.5 else along
    return _shown((values > 0) * rng.uniform(0.5, 1) if rng.random() < 0.7 else values / 2 + 0.5)


def rings(rng: np.random.Generator) -> Slice:
    """Rings, targets, tori: a bright rim without a brain."""
    canvas = _canvas(rng, 0)
    rows, columns = canvas.shape
    middle, axes = (
        (columns // 2, rows // 2),
        (columns * rng.uniform(0.25, 0.45), rows * rng.uniform(0.25, 0.45)),
    )
    shrink = 1.0
    for _ in range(rng.choice([1, 3, 5])):
        cv2.ellipse(
            canvas,
            middle,
            (int(axes[0] * shrink), int(axes[1] * shrink)),
            0,
            0,
            360,
            int(rng.integers(120, 256)),
            -1,
        )
        shrink *= rng.uniform(0.6, 0.95)
        cv2.ellipse(
            canvas,
            middle,
            (int(axes[0] * shrink), int(axes[1] * shrink)),
            0,
            0,
            360,
            int(rng.choice([0, 0, 30, 250])),
            -1,
        )
        shrink *= rng.uniform(0.5, 0.95)
    return _shown(canvas / 255)


FAMILIES: dict[str, Callable[[np.random.Generator], Slice]] = {
    maker.__name__: maker
    for maker in (
        flat,
        gradient,
        noise,
        clouds,
        text_page,
        chart,
        screenshot,
        logo,
        discs,
        checkerboard,
        rings,
    )
}


def _size(rng: np.random.Generator) -> tuple[int, int]:
    rows = int(rng.integers(128, 640))
    return rows, int(rows * rng.uniform(0.7, 1.4))


def _canvas(rng: np.random.Generator, gray: int) -> Canvas:
    return np.full(_size(rng), gray, np.uint8)


def _write(rng: np.random.Generator, canvas: Canvas, x: int, y: int) -> None:
    size = canvas.shape[0] / 400
    cv2.putText(
        canvas,
        str(rng.choice(WORDS)),
        (x, y),
        cv2.FONT_HERSHEY_SIMPLEX,
        size,
        int(rng.integers(0, 256)),
        1,
        cv2.LINE_AA,
    )


def _write_lines(
    rng: np.random.Generator, canvas: Canvas, left: int, top: int, right: int, bottom: int
) -> None:
    step = int(rng.integers(10, 26))
    size = step / 32
    gray = 255 - int(
        canvas[
            min((top + bottom) // 2, canvas.shape[0] - 1),
            min((left + right) // 2, canvas.shape[1] - 1),
        ]
    )
    for y in range(top + 2 * step, bottom - step // 2, step):
        if rng.random() < 0.12:
            continue
        line = " ".join(
            rng.choice(WORDS, size=max(1, int((right - left) / (step * 2.4) * rng.uniform(0.3, 1))))
        )
        cv2.putText(
            canvas, line, (left + step, y), cv2.FONT_HERSHEY_SIMPLEX, size, gray, 1, cv2.LINE_AA
        )


def _maybe_inverted(rng: np.random.Generator, canvas: Canvas, share: float) -> Slice:
    return _shown((255 - canvas if rng.random() < share else canvas) / 255)


def _shown(values: NDArray[np.floating] | FloatArray) -> Slice:
    return Slice(np.clip(np.asarray(values, np.float32), 0, 1), "display")
