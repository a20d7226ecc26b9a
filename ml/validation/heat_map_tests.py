"""Two tests of whether heat maps locate the hemorrhage, on held-out true positives.

    deletion   covering the hottest tenth of the image must lower the probability more than
               covering a random tenth of the head (W. Samek et al. 2017,
               doi 10.1109/TNNLS.2016.2599820); covered cells get the median gray of the head
    pointing   the hottest cell must be in the hemorrhage mask or adjacent to it
               (J. Zhang et al. 2018, doi 10.1007/s11263-017-1059-x)

Both use the exported graphs and `ml.inference.heat_maps`, as in serving. Each slice is predicted
alone, also by series models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import onnxruntime

from ml.artifacts.card import FEATURES, HEAD
from ml.evaluation.metrics import share_with_interval
from ml.figures import Estimate
from ml.inference.heat_maps import AIR, log_odds, occlusion
from ml.scans.slices import FloatArray

COVERED_SHARE = 0.1
# the drop for the hottest tenth must exceed the mean drop of this many random covers
RANDOM_COVERS = 5


@dataclass(frozen=True)
class HeatMapTest:
    """Whether the heat map of one slice passes both tests.

    Attributes:
        at: position of the slice.
        hottest_beats_random: the deletion test.
        hottest_in_or_beside_mask: the pointing test; None without a mask.
    """

    at: int
    hottest_beats_random: bool
    hottest_in_or_beside_mask: bool | None


def judge_heat_maps(
    files: Mapping[str, bytes],
    images: np.ndarray,
    masks: np.ndarray,
    at: Sequence[int],
    seed: int,
    on_map: Callable[[], None] = lambda: None,
) -> list[HeatMapTest]:
    """Return the results of both tests for the heat map of each slice.

    Args:
        files: the exported graphs by name.
        images: float32 (n, size, size, 1) of the run.
        masks: uint8 (n, m, m) see `ml.models.contract.RunData`.
        at: positions of the slices to test.
        seed: for the random covers.
        on_map: called after each slice; raises to stop.
    """
    features, head = (onnxruntime.InferenceSession(files[name]) for name in (FEATURES, HEAD))

    def maps_of(pictures: np.ndarray) -> FloatArray:
        return np.asarray(features.run(["maps"], {"images": pictures})[0], np.float32)

    def score(maps: FloatArray) -> FloatArray:
        # One by one, since a head may treat a batch as one scan.
        return np.array(
            [
                head.run(["slice_probability"], {"maps": slice_maps[np.newaxis]})[0][0]
                for slice_maps in maps
            ],
            np.float32,
        )

    tests: list[HeatMapTest] = []
    for position in at:
        image = np.asarray(images[position], np.float32)
        maps = maps_of(image[np.newaxis])[0]
        heat = occlusion(maps, score, image)
        random = np.random.default_rng([seed, int(position)])
        covers = [
            hottest_cells(heat),
            *(random_cells(image, heat.shape, random) for _ in range(RANDOM_COVERS)),
        ]
        answers = log_odds(
            score(maps_of(np.stack([image, *(covered(image, cells) for cells in covers)])))
        )
        drops = answers[0] - answers[1:]
        tests.append(
            HeatMapTest(
                at=int(position),
                hottest_beats_random=bool(drops[0] > drops[1:].mean()),
                hottest_in_or_beside_mask=points_at(heat, masks[position]),
            )
        )
        on_map()
    return tests


def summary(tested: Sequence[HeatMapTest], groups: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Return the share of heat maps that pass each test, by name; `groups` (n,) are those of all
    slices of the run.
    """
    outlined = [test for test in tested if test.hottest_in_or_beside_mask is not None]
    passed = {
        "hottest_beats_random": [(test.at, test.hottest_beats_random) for test in tested],
        "hottest_in_or_beside_mask": [
            (test.at, bool(test.hottest_in_or_beside_mask)) for test in outlined
        ],
    }
    return {
        name: share_with_interval(
            np.array([float(holds) for _, holds in of_test]),
            groups[[at for at, _ in of_test]] if of_test else groups[:0],
            seed,
        )
        for name, of_test in passed.items()
    }


def hottest_cells(heat: FloatArray) -> np.ndarray:
    """Return bool (h, w): the hottest tenth of the cells."""
    count = max(1, round(COVERED_SHARE * heat.size))
    chosen = np.zeros(heat.size, bool)
    chosen[np.argsort(-heat, axis=None, kind="stable")[:count]] = True
    return chosen.reshape(heat.shape)


def random_cells(
    image: FloatArray, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Return bool of that `shape` (h, w): as many cells as in `hottest_cells`, drawn from those
    that are mostly head.
    """
    shown = cv2.resize(
        (image[..., 0] > AIR).astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_AREA
    )
    count = max(1, round(COVERED_SHARE * shown.size))
    order = np.argsort(-(shown > 0.5).astype(int) - random.random(shape), axis=None)
    chosen = np.zeros(shown.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(shape)


def covered(image: FloatArray, cells: np.ndarray) -> FloatArray:
    """Return the image (size, size, 1) with the cells, bool (h, w), set to the median gray of the
    head.
    """
    inside = image > AIR
    gray = float(np.median(image[inside])) if inside.any() else 0.0
    painted = cv2.resize(
        cells.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST
    ).astype(bool)
    return np.where(painted[..., np.newaxis] & inside, np.float32(gray), image)


def points_at(heat: FloatArray, mask: np.ndarray) -> bool | None:
    """Return whether the hottest cell of (h, w) or one of its neighbors overlaps hemorrhage in the
    mask, uint8 (m, m).
    """
    bloody = mask == 1
    if not bloody.any():
        return None
    row, column = (int(place) for place in np.unravel_index(int(heat.argmax()), heat.shape))
    (top, bottom), (left, right) = (
        (max(place - 1, 0) * side // cells, -(-(min(place + 2, cells)) * side // cells))
        for place, cells, side in zip((row, column), heat.shape, bloody.shape, strict=True)
    )
    return bool(bloody[top:bottom, left:right].any())
