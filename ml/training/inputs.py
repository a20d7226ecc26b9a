"""Model inputs of a training: all images of its pool, and their masks in the same frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ml.checkpoints import digest, load_json, replacing, save_json
from ml.datasets.examples import Example, slice_of
from ml.errors import DatasetError, ImageError
from ml.preprocessing.model_input import Frame, InputSpec, cut, to_input

MASK_PX = 112
BLOOD, NO_BLOOD, NOT_DRAWN = 1, 0, 255
SHARE_OF_A_CELL = 0.5
"""Minimum share of hemorrhage from which a cell of the downsampled mask is positive."""


@dataclass(frozen=True)
class Inputs:
    """`images` float32 (n, size, size, 1) in 0..1, `masks` uint8 (n, 112, 112); memory-mapped
    files.
    """

    images: np.ndarray
    masks: np.ndarray


def read_inputs(
    examples: Sequence[Example], spec: InputSpec, cache: Path, report: Callable[[float], None]
) -> Inputs:
    """Return inputs and masks of all examples, from `cache` if available.

    Args:
        examples: the images.
        spec: the model's preprocessing.
        cache: a folder for the two arrays, so that a large data set need not fit in memory.
        report: called with the fraction done after each image; raises to stop.

    Raises:
        DatasetError: an image or mask is unreadable, a mask and its image differ in size, or the
            cache, on whose order a checkpoint relies, belongs to other examples.
    """
    paths = cache / "images.npy", cache / "masks.npy"
    digest, owner = _digest(examples), cache / "examples.json"
    if load_json(owner) not in (None, digest):
        raise DatasetError(
            f"Order, masks or labels of the images have changed since {cache.parent.name} was"
            " created; give another folder."
        )
    save_json(owner, digest)
    if not all(path.is_file() for path in paths):
        shapes = (len(examples), spec.size, spec.size, 1), (len(examples), MASK_PX, MASK_PX)
        with replacing(paths[0]) as of_images, replacing(paths[1]) as of_masks:
            create = np.lib.format.open_memmap
            images = create(of_images, mode="w+", dtype=np.float32, shape=shapes[0])
            masks = create(of_masks, mode="w+", dtype=np.uint8, shape=shapes[1])
            for position, example in enumerate(examples):
                images[position], masks[position] = _input_and_mask(example, spec)
                report((position + 1) / len(examples))
            images.flush()
            masks.flush()
    return Inputs(*(np.asarray(np.load(path, mmap_mode="r")) for path in paths))


def _digest(examples: Sequence[Example]) -> str:
    """Return the SHA-256 (hex) of the list of images with their labels and masks."""
    masks = (hashlib.sha256(e.mask.read_bytes()).hexdigest() if e.mask else "" for e in examples)
    return digest(
        *(
            f"{e.dataset}\t{e.name}\t{e.sha256}\t{e.label}\t{mask}"
            for e, mask in zip(examples, masks, strict=True)
        )
    )


def _input_and_mask(example: Example, spec: InputSpec) -> tuple[np.ndarray, np.ndarray]:
    try:
        slice_ = slice_of(example)
    except ImageError as err:
        raise DatasetError(f"{example.name}: {err}") from err
    pixels, frame = to_input(slice_, spec)
    if example.label == 0:
        return pixels, np.full((MASK_PX, MASK_PX), NO_BLOOD, np.uint8)
    if example.label is None or example.mask is None:
        return pixels, np.full((MASK_PX, MASK_PX), NOT_DRAWN, np.uint8)
    return pixels, small_mask(read_mask(example, slice_.pixels.shape), frame)


def read_mask(example: Example, shape: tuple[int, ...]) -> np.ndarray:
    """Read the mask of an example, bool (height, width).

    Raises:
        DatasetError: it is not an image, or differs from the image in shape.
    """
    try:
        with Image.open(str(example.mask), formats=("PNG", "JPEG")) as opened:
            drawn = np.asarray(opened.convert("L")) > 0
    except (OSError, UnidentifiedImageError) as err:
        raise DatasetError(f"The mask of {example.name} is not a readable image.") from err
    if drawn.shape != shape:
        sizes = f"{drawn.shape[1]} x {drawn.shape[0]}", f"{shape[1]} x {shape[0]}"
        raise DatasetError(
            f"The mask of {example.name} has {sizes[0]} pixels, but its image {sizes[1]}."
        )
    return drawn


def small_mask(drawn: np.ndarray, frame: Frame) -> np.ndarray:
    """Return a mask, bool (height, width), in the model's frame: uint8 (112, 112), 1 hemorrhage and
    0 none.

    If it is too small for any cell, the cell with the largest share is positive; if it is outside
    the frame, all is 255 (unknown).
    """
    share = cv2.resize(
        cut(drawn.astype(np.float32), frame), (MASK_PX, MASK_PX), interpolation=cv2.INTER_AREA
    )
    if share.max() <= 0:
        return np.full((MASK_PX, MASK_PX), NOT_DRAWN, np.uint8)
    return (share >= min(SHARE_OF_A_CELL, float(share.max()))).astype(np.uint8)
