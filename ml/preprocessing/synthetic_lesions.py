"""Synthetic lesions in training images: hemorrhages drawn or transferred into negative images, and
mimics of hemorrhage.

Applied to training images only; images and masks as in `ml.preprocessing.augmentation`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ml.preprocessing.augmentation import Mask, as_float
from ml.preprocessing.scaling import disc
from ml.scans.slices import BoolArray, FloatArray

FAINTEST = 0.05
"""Minimum brightness of a drawn hemorrhage above the original: a lesion that is invisible must not
be labeled.
"""

TRIES = 4
"""Attempts per shape: thin shapes are often too faint and would otherwise be rare."""

RIM_PX = 4.0
"""Depth of the partial-volume effect below the bone, in pixels of an image 224 wide."""

PUSHED_SHARE = 0.5
"""Share of the crescents along the bone with mass effect."""


def room_for_lesions(image: FloatArray) -> BoolArray:
    """Return where a lesion may be placed in a model's input, bool (size, size): inside the skull;
    all False if there is no closed ring of bone, as at the skull base.

    `ml.preprocessing.skull.intracranial_space` serves another purpose and is no substitute: it
    strips the skull in any slice, so it uses the head's outline, adapts to dim bone, and restores
    by a convex hull what bone hides. Here, a lesion must not lie in an area that only the hull
    adds, and a face must be rejected.
    """
    size = image.shape[0]
    none = np.zeros(image.shape, bool)
    bone = (image > 0.93).astype(np.uint8)
    round_gap = disc(max(3, round(size / 56)) | 1)
    closed = cv2.morphologyEx(bone, cv2.MORPH_CLOSE, round_gap)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(
        1 - np.asarray(closed, np.uint8), connectivity=4
    )
    border = set(np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])))
    areas = [
        (int(stats[part, cv2.CC_STAT_AREA]), part) for part in range(1, count) if part not in border
    ]
    if not areas or max(areas)[0] < 0.12 * size * size:
        return none
    space = (parts == max(areas)[1]).astype(np.uint8)
    space = cv2.morphologyEx(space, cv2.MORPH_OPEN, round_gap)
    holes, _ = cv2.findContours(space, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(space)
    if holes:
        cv2.drawContours(filled, [max(holes, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    shown = image[filled.astype(bool)]
    # Brain is gray and homogeneous; a face with its sinuses and bones is not.
    if not len(shown) or np.mean(shown < 0.12) > 0.25 or np.mean(shown > 0.93) > 0.1:
        return none
    return filled.astype(bool)


def with_drawn_bleed(
    image: FloatArray, mask: Mask, random: np.random.Generator
) -> tuple[FloatArray, Mask] | None:
    """Return the image with a drawn hemorrhage, and its mask; None if the image has no room for
    one.

    The shapes are typical: a crescent (subdural) along the bone, possibly with mass effect, or
    along the falx; a lens (epidural); an irregular ball with a hypodense rim (intraparenchymal);
    blood in CSF spaces (subarachnoid, intraventricular).
    """
    space = room_for_lesions(image)
    shape = SHAPES[int(random.integers(len(SHAPES)))]
    for _ in range(TRIES if space.any() else 0):
        drawn = _drawn(shape, image, mask, space, random)
        if drawn is not None:
            return drawn
    return None


def _drawn(
    shape: Callable[..., FloatArray],
    image: FloatArray,
    mask: Mask,
    space: BoolArray,
    random: np.random.Generator,
) -> tuple[FloatArray, Mask] | None:
    """Return the result of `with_drawn_bleed`, None if the shape is too small or too faint."""
    before, image = image, image.copy()
    amount = shape(image, space, random)
    amount = as_float(
        cv2.GaussianBlur(amount, (0, 0), random.uniform(0.5, 1.3) * image.shape[0] / 224) * space
    )
    if float(amount.sum()) < 25 * (image.shape[0] / 224) ** 2:
        return None
    brain = float(np.median(image[space]))
    smooth = as_float(
        cv2.GaussianBlur(
            random.standard_normal(image.shape, dtype=np.float32), (0, 0), random.uniform(1, 4)
        )
    )
    texture = smooth / max(float(smooth.std()), 1e-6) * np.float32(random.uniform(0.01, 0.05))
    # from the image itself, so that the hemorrhage is as noisy as the brain
    grain = image - cv2.GaussianBlur(image, (0, 0), 1.5)
    blood = np.clip(brain + random.uniform(0.12, 0.42), 0, 0.97) + texture + grain
    drawn = np.clip(image * (1 - amount) + np.maximum(blood, image) * amount, 0, 1).astype(
        np.float32
    )
    shown = amount > 0.4
    if not shown.any() or float((drawn - before)[shown].mean()) < FAINTEST:
        return None
    return drawn, _outlined(shown, mask)


def with_moved_bleed(
    image: FloatArray, mask: Mask, donor: FloatArray, donor_mask: Mask, random: np.random.Generator
) -> tuple[FloatArray, Mask] | None:
    """Return the image (size, size) with another patient's hemorrhage at the same location in the
    head, and its mask (m, m); None if it does not fit.

    Both heads fill their frames, so locations correspond approximately.
    """
    space = room_for_lesions(image)
    size = image.shape[0]
    outline = as_float(
        cv2.resize(
            (donor_mask == 1).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR
        )
    )
    if not space.any() or float(outline.sum()) < 20:
        return None
    if random.random() < 0.5:
        donor, outline = donor[:, ::-1], outline[:, ::-1]
    move = np.array(
        [[1, 0, random.uniform(-0.04, 0.04) * size], [0, 1, random.uniform(-0.04, 0.04) * size]],
        np.float32,
    )
    donor = as_float(cv2.warpAffine(np.ascontiguousarray(donor), move, (size, size)))
    outline = as_float(cv2.warpAffine(np.ascontiguousarray(outline), move, (size, size)))
    reach = max(3, round(size / 45)) | 1
    amount = cv2.GaussianBlur(
        cv2.dilate(outline, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))),
        (0, 0),
        reach / 3,
    )
    if float((outline * space).sum()) < 0.6 * float(outline.sum()):
        return None
    near = (
        (
            cv2.dilate((outline > 0.3).astype(np.uint8), np.ones((3 * reach, 3 * reach), np.uint8))
            > 0
        )
        & (outline < 0.1)
        & space
    )
    shift = float(np.median(image[near]) - np.median(donor[near])) if near.sum() > 20 else 0.0
    amount = np.clip(amount, 0, 1) * space
    drawn = np.clip(image * (1 - amount) + np.clip(donor + shift, 0, 0.98) * amount, 0, 1).astype(
        np.float32
    )
    return drawn, _outlined((outline > 0.4) & space, mask)


def with_decoy(image: FloatArray, random: np.random.Generator) -> FloatArray:
    """Return the image (size, size) with a mimic of hemorrhage: calcifications, a hypodense lesion,
    or beam-hardening streaks.

    Nothing clearly brighter than brain is darkened, and streaks are faint, so that a hemorrhage in
    the image remains brighter than its surroundings.
    """
    space = room_for_lesions(image)
    if not space.any():
        return image
    return np.clip(DECOYS[int(random.integers(len(DECOYS)))](image, space, random), 0, 1).astype(
        np.float32
    )


def _outlined(blood: BoolArray, mask: Mask) -> Mask:
    """Return the outline in the size of `mask`, joined with what it already outlines."""
    small = (
        cv2.resize(blood.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0.3
    )
    return np.where(small | (mask == 1), 1, 0).astype(np.uint8)


def _blob(
    size: int, center: tuple[float, float], radius: float, random: np.random.Generator
) -> FloatArray:
    """Return an irregular ball, float32 (size, size): 1 inside, 0 outside."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    angle, stretch = random.uniform(0, np.pi), random.uniform(0.55, 1.0)
    down, right = rows - center[0], columns - center[1]
    along, across = (
        np.cos(angle) * right + np.sin(angle) * down,
        (-np.sin(angle) * right + np.cos(angle) * down) / stretch,
    )
    wobble = cv2.resize(
        random.normal(0, 0.3, (9, 9)).astype(np.float32),
        (size, size),
        interpolation=cv2.INTER_CUBIC,
    )
    return as_float(np.hypot(along, across) / max(radius, 1) + wobble < 1)


def _along_bone(space: BoolArray, random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return the depth below the bone in pixels, and how close the direction of each pixel is to a
    random one (1 in that direction, decreasing to 0).
    """
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(space)
    grid_rows, grid_columns = np.mgrid[: space.shape[0], : space.shape[1]].astype(np.float32)
    direction = np.arctan2(grid_rows - rows.mean(), grid_columns - columns.mean())
    toward, half_width = random.uniform(-np.pi, np.pi), random.uniform(0.35, 1.5)
    angle = np.abs(np.angle(np.exp(1j * (direction - toward))))
    return depth.astype(np.float32), (1 - (angle / half_width) ** 2).astype(np.float32)


def _crescent(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    depth, near = _along_bone(space, random)
    thickness = random.uniform(2.5, 12) * image.shape[0] / 224
    wobble = cv2.resize(
        random.normal(1, 0.2, (8, 8)).astype(np.float32),
        image.shape[::-1],
        interpolation=cv2.INTER_CUBIC,
    )
    reach = as_float(thickness * np.sqrt(np.clip(near, 0, 1)) * np.clip(wobble, 0, None))
    if random.random() < PUSHED_SHARE:
        _push_inwards(image, space, depth, reach)
    return as_float((depth < reach) & space & (near > 0))


def _push_inwards(
    image: FloatArray, space: BoolArray, depth: FloatArray, reach: FloatArray
) -> None:
    """Simulate mass effect: displace the brain from the bone by `reach` pixels, decreasing with
    depth.

    The blurred edge of the bone stays in place.
    """
    size = image.shape[0]
    down, right = np.gradient(cv2.GaussianBlur(depth, (0, 0), 2 * size / 224))
    reach = as_float(cv2.GaussianBlur(reach, (0, 0), 2 * size / 224))
    shift = reach * np.exp(-np.clip(depth - reach, 0, None) / (3 * max(float(reach.max()), 1.0)))
    shift = np.minimum(shift, np.clip(depth - RIM_PX * size / 224, 0, None))
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    pushed = cv2.remap(
        image, as_float(columns - right * shift), as_float(rows - down * shift), cv2.INTER_LINEAR
    )
    brain = space & (depth >= reach)
    image[brain] = pushed[brain]


def _along_falx(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    places = np.argwhere(space).astype(np.float32)
    center = places.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((places - center).T))
    axis = axes[:, np.argmax(np.abs(axes[0]))]  # heads stand more or less upright
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    down, right = rows - center[0], columns - center[1]
    along, across = axis[0] * down + axis[1] * right, axis[0] * right - axis[1] * down
    half = np.abs((places - center) @ axis).max()
    middle, half_length = random.uniform(-0.7, 0.7) * half, random.uniform(0.15, 0.5) * half
    taper = np.sqrt(np.clip(1 - ((along - middle) / half_length) ** 2, 0, 1))
    side = 1 if random.random() < 0.5 else -1
    off = (
        side * across
        - random.uniform(-3, 3) * size / 224
        - random.uniform(-1, 1) * 4 * size / 224 * (along / half) ** 2
    )
    thickness = random.uniform(2, 6) * size / 224
    return as_float((off > -1) & (off < thickness * taper) & (taper > 0) & space)


def _lens(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    depth, _ = _along_bone(space, random)
    edge = np.argwhere(space & (depth < 2.5))
    row, column = edge[int(random.integers(len(edge)))]
    size = image.shape[0]
    return (
        _blob(size, (float(row), float(column)), random.uniform(10, 32) * size / 224, random)
        * space
    )


def _ball(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    room = np.argwhere(depth > random.uniform(3, 25) * size / 224)
    if not len(room):
        return np.zeros_like(image)
    row, column = room[int(random.integers(len(room)))]
    radius = np.exp(random.uniform(np.log(4), np.log(26))) * size / 224
    blood = _blob(size, (float(row), float(column)), radius, random)
    if random.random() < 0.6:  # often with hypodense edema around it
        rim = cv2.GaussianBlur(cv2.dilate(blood, np.ones((7, 7), np.uint8)), (0, 0), 3) * space
        image -= rim * np.float32(random.uniform(0.02, 0.1)) * (blood < 0.5)
    return blood * space


def _filled_fluid(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    smooth = cv2.GaussianBlur(image, (0, 0), 1.2 * size / 224)
    fluid = (smooth < np.median(image[space]) - 0.06) & space
    rows, columns = np.nonzero(fluid)
    if len(rows) < 30:
        return np.zeros_like(image)
    chosen = int(random.integers(len(rows)))
    region = _blob(
        size,
        (float(rows[chosen]), float(columns[chosen])),
        random.uniform(18, 60) * size / 224,
        random,
    )
    return (region * fluid).astype(np.float32)


def _calcified(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    depth = cv2.distanceTransform(space.astype(np.uint8), cv2.DIST_L2, 5)
    room = np.argwhere(depth > 5 * size / 224)
    chalk = np.zeros_like(image)
    for _ in range(int(random.integers(1, 5)) if len(room) else 0):
        row, column = room[int(random.integers(len(room)))]
        chalk = np.maximum(
            chalk,
            _blob(size, (float(row), float(column)), random.uniform(1.0, 3.5) * size / 224, random),
        )
    chalk = as_float(cv2.GaussianBlur(chalk, (0, 0), random.uniform(0.4, 0.8) * size / 224))
    return as_float(image * (1 - chalk) + np.maximum(image, random.uniform(0.9, 1.0)) * chalk)


def _darkened(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    """Return the image with a hypodense lesion: an old or a recent infarct, edema, or a cyst."""
    size = image.shape[0]
    places = np.argwhere(space)
    row, column = places[int(random.integers(len(places)))]
    region = (
        _blob(size, (float(row), float(column)), random.uniform(6, 35) * size / 224, random) * space
    )
    region = as_float(cv2.GaussianBlur(region, (0, 0), random.uniform(1, 4) * size / 224))
    brain = float(np.median(image[space]))
    return as_float(
        image
        - region
        * np.float32(random.uniform(0.04, 0.25))
        * np.clip(1 - (image - brain) / 0.08, 0, 1)
        * (image > 0.05)
    )


def _streaked(image: FloatArray, space: BoolArray, random: np.random.Generator) -> FloatArray:
    size = image.shape[0]
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = random.normal(0, 0.35)  # most extend between the petrous bones
    profile = random.normal(0, 1, (1, int(random.integers(8, 30)))).astype(np.float32)
    profile = cv2.resize(profile, (2 * size, 1), interpolation=cv2.INTER_CUBIC)[0]
    place = np.clip(
        (np.cos(angle) * rows + np.sin(angle) * columns + 1) * size, 0, 2 * size - 1
    ).astype(int)
    where = cv2.GaussianBlur(space.astype(np.float32), (0, 0), 2 * size / 224)
    return as_float(image + profile[place] * where * np.float32(random.uniform(0.01, 0.06)))


SHAPES: tuple[Callable[..., FloatArray], ...] = (
    (_crescent,) * 4 + (_lens, _ball) * 2 + (_along_falx, _filled_fluid)
)
DECOYS: tuple[Callable[..., FloatArray], ...] = (_calcified, _darkened, _streaked)
