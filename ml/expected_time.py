"""The expected duration of each part of a training run, in seconds on two cores, before anything is
measured.

The launch form multiplies these values by the relative speed of earlier runs, and the progress of a
run (`ml.training.progress`) by that of the run itself. So their ratios matter more than their
absolute values. They were measured on head_ct (tests/ml/training/timelines) and in the runs of
docs/results.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

READ_S = 0.03
"""Seconds per image for decoding, head detection and cropping."""
FEATURES_S, FIRST_S = 0.005, 1.0
"""Seconds per image for frozen convolutions at 224 pixels, and seconds until the first is
computed.
"""
HEAT_MAP_S = 0.19
"""Seconds per heat map at 224 pixels: occlusion and its test. They grow with the square of the
number of cells: twice as many cells are masked at twice as many positions.
"""
RECURRENT = ("cnn_lstm", "cnn_gru")
RECURRENT_MAPS, RECURRENT_FIRST_S, RECURRENT_EPOCH_S = 3.6, 4.5, 0.3
"""For recurrent heads: the factor for a heat map, the seconds until the first batch, and the
seconds per epoch.
"""
HEAT_MAPS, MISTAKES = 50, 6
"""At most this many heat maps are tested in a fold, and usually this many mistakes are drawn."""
EPOCH_IMAGES, DRAWS = 1024, 3
"""An epoch draws at most this many images: `DRAWS` per image of a training part, which is four for
each image that is trained on, since about a quarter is held out for calibration.
"""
EXPORT_S, FIGURES_S = 0.5, 1.0
COPY_S = 0.0013
"""Seconds per augmented copy of an image."""
CONTROLS = ("permuted", "metadata", "leaked", "random_weights")
"""The controls of `ml.training.controls`, in order."""
CHEAP_PERMUTATIONS, DEAR_PERMUTATIONS = 20, 5
"""Numbers of permutations if only heads are trained, and if convolutions are trained."""
MOST_IMAGES_PERMUTED_WHOLE = 600
"""Up to this number of images, every permutation is a full cross-validation; above, permutation p
is tested only on fold p.
"""
MOST_COPIES, MOST_LEAKED_IMAGES = 10, 4000
"""In the leaked control: the maximum number of copies of each image, and of images in total."""
AUTOENCODER_IMAGES = 8000
TUNED_S, FROZEN_S = 0.02, 0.008
"""Seconds per image drawn in an epoch: if all convolutions are trained, and if the first three are
frozen.
"""
CONVOLUTIONS = 5
"""Of AlexNet."""
EPOCH_S = {
    "alexnet_cells": TUNED_S,
    "alexnet_cells_series": TUNED_S,
    "googlenet_cells": 0.064,
    "googlenet_cells_series": 0.064,
    "googlenet_unet": 0.074,
    "googlenet_unet_series": 0.074,
}
"""Seconds per drawn image, by architecture. On two cores of an Intel Xeon with AVX-512 and without
AMX, in float32, `python -m bench.training` measured 0.006 (alexnet), 0.016 (alexnet_cells), 0.050
(googlenet_cells) and 0.058 (googlenet_unet): 3.2 and 3.7 times alexnet_cells. The same ratios are
used here, on the slower machine on which the other values were measured.
"""


READING = "reading"
"""The part that reads the images; all other parts compute."""


@dataclass(frozen=True)
class Part:
    """A part of a training run, whose progress advances in steps of equal size.

    Attributes:
        name: "reading", "folds", "controls", "final", "export" or "figures".
        steps: the seconds of each step: the fit and the tests of each fold, and each control.
    """

    name: str
    steps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all steps."""
        return sum(self.steps)

    def seconds_at(self, share: float) -> float:
        """Return the seconds up to a share of the steps, 0..1."""
        done = min(max(share, 0.0), 1.0) * len(self.steps)
        whole = min(int(done), len(self.steps) - 1)
        return sum(self.steps[:whole]) + (done - whole) * self.steps[whole]


def learns_features(architecture: str, settings: Mapping[str, Any]) -> bool:
    """Whether convolutions, or an autoencoder, are trained in every fit; otherwise all fits share
    frozen features.
    """
    if settings.get("fine_tune_epochs") or settings.get("restructure") == "autoencoder":
        return True
    if architecture == "alexnet":
        return int(settings.get("frozen", 0)) < CONVOLUTIONS
    return architecture == "autoencoder" or architecture in EPOCH_S


def expected_parts(
    architecture: str,
    settings: Mapping[str, Any],
    images: int,
    datasets: int = 1,
    *,
    starts_random: bool = False,
) -> list[Part]:
    """Return the parts of a training run, in order.

    Args:
        architecture: a name of `ml.catalogue`.
        settings: all of its settings.
        images: number of images.
        datasets: number of data sets.
        starts_random: whether the initial weights are random; then there is no control for that.
    """
    by_dataset = settings.get("folds_by") == "data set"
    folds = max(datasets, 2) if by_dataset else int(settings.get("folds", 5))
    repeats = 1 if by_dataset else int(settings.get("repeats", 1))
    learns = learns_features(architecture, settings)
    train = images * (folds - 1) / folds
    fit = _fit_s(architecture, settings, train)
    shared = _shared_s(architecture, settings, images)
    maps = min(HEAT_MAPS, images / folds / 2) + MISTAKES
    heat_maps_s = HEAT_MAP_S * _area(settings) ** 2 * maps
    begin = FIRST_S
    if architecture in RECURRENT:
        heat_maps_s, begin = heat_maps_s * RECURRENT_MAPS, FIRST_S + RECURRENT_FIRST_S
    # Each fold is a fit followed by its tests of heat maps, which only the first repeat has.
    fits = [*([fit, heat_maps_s] * folds), *([fit, 0.0] * folds * (repeats - 1))]
    fits[0] += begin + shared

    def fit_on(images: float) -> float:
        return _fit_s(architecture, settings, images * (folds - 1) / folds)

    controls = tuple(
        0.0
        if name == "random_weights" and starts_random
        else _control_s(name, fit_on, shared, (images, folds), learns)
        for name in control_names(settings, learns)
    )
    return [
        Part(READING, (READ_S * images * (int(settings.get("input_size", 224)) / 224) ** 2,)),
        Part("folds", tuple(fits)),
        Part("controls", controls or (0.0,)),
        Part("final", (_fit_s(architecture, settings, images),)),
        Part("export", (EXPORT_S,)),
        Part("figures", (FIGURES_S + 0.0005 * images,)),
    ]


def expected_s(parts: list[Part]) -> float:
    """Return the seconds of all parts."""
    return sum(part.seconds for part in parts)


def control_names(settings: Mapping[str, Any], learned_features: bool) -> tuple[str, ...]:
    """Return the controls for the setting `controls`: "all", "cheap" (without fine-tuning) or
    "none".
    """
    wanted = str(settings.get("controls", "cheap"))
    if wanted == "all":
        return CONTROLS
    if wanted == "none":
        return ()
    return ("metadata",) if learned_features else ("permuted", "metadata")


def leaked_copies(images: int) -> int:
    """Return the number of copies of each image in the leaked control."""
    return max(2, min(MOST_COPIES, MOST_LEAKED_IMAGES // max(images, 1)))


def _control_s(
    name: str,
    fit_on: Callable[[float], float],
    shared: float,
    size: tuple[int, int],
    learns: bool,
) -> float:
    """Return the seconds of a control.

    Args:
        name: of the control.
        fit_on: returns the seconds of one fit in folds of that many images.
        shared: the seconds of the work that all fits share.
        size: numbers of images and folds.
        learns: whether convolutions are trained.
    """
    images, folds = size
    fit, copies = fit_on(images), leaked_copies(images)
    if name == "metadata":
        return 0.5 + 0.006 * images
    if name == "permuted":
        if learns:
            return DEAR_PERMUTATIONS * fit
        return CHEAP_PERMUTATIONS * fit * (folds if images <= MOST_IMAGES_PERMUTED_WHOLE else 1)
    if name == "leaked":
        copying = COPY_S * copies * images
        # An epoch draws no more images from a larger set; other heads are trained on all of it.
        return copying + (fit if learns else copies * shared + folds * fit_on(copies * images))
    return shared + (fit if learns else folds * fit)


def _shared_s(architecture: str, settings: Mapping[str, Any], images: int) -> float:
    """Return the seconds that the first fit takes for features shared by all fits."""
    if learns_features(architecture, settings):
        return 0.0  # Each fit has its own.
    return FEATURES_S * images * _area(settings)


def _fit_s(architecture: str, settings: Mapping[str, Any], images: float) -> float:
    """Return the seconds of a fit on that many images."""
    copies = int(settings.get("augmentation", 1))
    drawn = images * copies
    # Of a support vector machine, the fastest.
    seconds = 0.05 + 0.0004 * drawn + 7e-7 * drawn**2
    if settings.get("restructure") == "autoencoder" or architecture == "autoencoder":
        seconds += 0.0025 * AUTOENCODER_IMAGES + FEATURES_S * images * copies
    elif copies > 1 and architecture != "alexnet":
        seconds += FEATURES_S * images * (copies - 1) * _area(settings)
    of_epoch = min(EPOCH_IMAGES, DRAWS * images) * _area(settings)
    seconds += int(settings.get("fine_tune_epochs", 0)) * of_epoch * TUNED_S
    epochs = int(settings.get("epochs", 0))
    if architecture in EPOCH_S:
        seconds += epochs * of_epoch * EPOCH_S[architecture]
    elif architecture == "alexnet":
        frozen = FROZEN_S if int(settings.get("frozen", 3)) >= 3 else TUNED_S
        seconds += epochs * of_epoch * frozen
    elif architecture in RECURRENT:
        seconds += epochs * RECURRENT_EPOCH_S
    return seconds


def _area(settings: Mapping[str, Any]) -> float:
    return float((int(settings.get("input_size", 224)) / 224) ** 2)
