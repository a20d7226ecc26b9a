"""The expected duration of each part of a training run, in seconds on two cores, before anything is
measured.

The launch form multiplies these values by the relative speed of earlier runs, and the progress of a
run (`ml.training.progress`) by that of the run itself. So their ratios matter more than their
absolute values. They were measured on head_ct (tests/ml/training/timelines) and in the runs of
docs/results.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.expected_fits import (
    LEARNING,
    MAPS,
    READING,
    RECURRENT,
    RECURRENT_MAPS,
    Fits,
    Step,
    control_names,
)

READ_S = 0.03
"""Seconds per image for decoding, head detection and cropping."""
HEAT_MAP_S = 0.25
"""Seconds per heat map at 224 pixels: occlusion and its test. They grow with the square of the
number of cells: twice as many cells are masked at twice as many positions.
"""
HEAT_MAPS, FOUND, MISTAKES = 50, 0.85, 6
"""At most this many heat maps are tested in a fold, those of the share of the positive images that
is found, and usually this many mistakes are drawn.
"""
EXPORT_S, FIGURES_S = 0.5, 1.0


@dataclass(frozen=True)
class Part:
    """A part of a training run, which reports its progress, 0..1.

    Attributes:
        name: "reading", "folds", "controls", "final", "export" or "figures".
        steps: in order.
    """

    name: str
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all steps."""
        return sum(step.seconds for step in self.steps)

    def seconds_at(self, share: float) -> float:
        """Return the seconds up to a share of the progress, 0..1."""
        left = min(max(share, 0.0), 1.0) * sum(step.share for step in self.steps)
        seconds = 0.0
        for step in self.steps:
            done = min(left / step.share, 1.0)
            seconds, left = seconds + done * step.seconds, left - done * step.share
        return seconds


def expected_parts(
    architecture: str,
    settings: Mapping[str, Any],
    images: int,
    datasets: int = 1,
    *,
    starts_random: bool = False,
    positives: int | None = None,
    scans: int | None = None,
) -> list[Part]:
    """Return the parts of a training run, in order.

    Args:
        architecture: a name of `ml.catalogue`.
        settings: all of its settings.
        images: number of images.
        datasets: number of data sets.
        starts_random: whether the initial weights are random; then there is no control for that.
        positives: number of images with hemorrhage; by default half of them.
        scans: number of scans if they have several slices.
    """
    by_dataset = settings.get("folds_by") == "data set"
    folds = max(datasets, 2) if by_dataset else int(settings.get("folds", 5))
    repeats = 1 if by_dataset else int(settings.get("repeats", 1))
    fits = Fits(architecture, settings, images, folds, scans)
    mapped = min(HEAT_MAPS, FOUND * (images / 2 if positives is None else positives) / folds)
    heat_maps = HEAT_MAP_S * fits.area**2 * (mapped + MISTAKES)
    if architecture in RECURRENT:
        heat_maps *= RECURRENT_MAPS
    cross_validated = []
    for number in range(folds * repeats):
        # Half of a fold's progress is its fit, the other half its tests of heat maps, which only
        # the first repeat has.
        cross_validated += fits.of_fold(is_first=number == 0)
        cross_validated.append(Step(MAPS, heat_maps if number < folds else 0.0))
    controls = tuple(
        step
        for name in control_names(settings, fits.learns)
        for step in fits.of_control(name, starts_random)
    )
    reading = READ_S * images * fits.area
    return [
        Part(READING, (Step(READING, reading),)),
        Part("folds", tuple(cross_validated)),
        Part("controls", controls or (Step(LEARNING, 0.0),)),
        Part("final", tuple(fits.final())),
        Part("export", (Step("export", EXPORT_S),)),
        Part("figures", (Step("figures", FIGURES_S + 0.0005 * images),)),
    ]


def expected_s(parts: list[Part]) -> float:
    """Return the seconds of all parts."""
    return sum(part.seconds for part in parts)
