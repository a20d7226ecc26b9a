"""The expected duration of each fit of a training run and of its controls, in seconds on two cores,
as steps whose shares add up to 1, as in the progress that each architecture reports.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

FEATURES_S, FIRST_S = 0.01, 1.0
"""Seconds per image for frozen convolutions at 224 pixels, and seconds until the first is
computed.
"""
RECURRENT = ("cnn_lstm", "cnn_gru")
RECURRENT_MAPS, RECURRENT_FIRST_S, RECURRENT_EPOCH_S, RECURRENT_BATCH_S = 1.1, 3.0, 0.07, 0.018
"""For recurrent heads: the factor for a heat map, the seconds until the first batch of each
network, and the seconds per epoch and per batch.
"""
ROWS_BATCH, SCANS_BATCH, RECURRENT_BATCHES = 32, 8, 48
"""Of recurrent heads: slices or scans in a batch, and the maximum number of batches per epoch."""
INNER = 0.75
"""The share of a training part that is trained on; the rest is held out for calibration."""
EPOCH_IMAGES, DRAWS = 1024, 3
"""An epoch draws at most this many images: `DRAWS` per image of a training part, which is four for
each image that is trained on, since about a quarter is held out for calibration.
"""
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
AUTOENCODER_IMAGES, AUTOENCODER_S = 8000, 0.0025
"""Images shown to an autoencoder, and seconds for each."""
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


READING, STARTING, FEATURES, TUNING, LEARNING = (
    "reading",
    "starting",
    "features",
    "tuning",
    "learning",
)
MAPS, COPYING, LEAKED = "heat maps", "copying", "learning from copies"
"""Kinds of steps; those of one kind run at about the same speed."""
START_SHARE = 0.001
"""The share of a step at which it is no longer starting: what it loads and compiles delays its
first report.
"""


@dataclass(frozen=True)
class Step:
    """A step of a training run.

    Attributes:
        kind: of the work.
        seconds: expected; 0 where there is none, or its result is shared.
        share: how much of the progress that its part reports, relative to other steps.
    """

    kind: str
    seconds: float
    share: float = 1.0


def learns_features(architecture: str, settings: Mapping[str, Any]) -> bool:
    """Whether convolutions, or an autoencoder, are trained in every fit; otherwise all fits share
    frozen features.
    """
    if settings.get("fine_tune_epochs") or settings.get("restructure") == "autoencoder":
        return True
    if architecture == "alexnet":
        return int(settings.get("frozen", 0)) < CONVOLUTIONS
    return architecture == "autoencoder" or architecture in EPOCH_S


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


@dataclass(frozen=True)
class Fits:
    """The fits of a training run.

    Attributes:
        architecture, settings: an entry of `ml.catalogue`, and all of its settings.
        images, folds: their numbers.
        scans: number of scans if they have several slices.
    """

    architecture: str
    settings: Mapping[str, Any]
    images: int
    folds: int
    scans: int | None

    @property
    def learns(self) -> bool:
        """See `learns_features`."""
        return learns_features(self.architecture, self.settings)

    @property
    def area(self) -> float:
        """See `area_of`."""
        return area_of(self.settings)

    def of_fold(
        self,
        copies: int = 1,
        *,
        is_first: bool = False,
        is_final: bool = False,
        learning: str = LEARNING,
    ) -> list[Step]:
        """Return the steps of a fit to the training part of a fold, of that many copies of each
        image; the first computes the features that all fits share, the final one learns from all
        images and may be calibrated by the others.
        """
        images = float(copies * self.images)
        if not is_final:
            images *= (self.folds - 1) / self.folds
        tuning = tuning_s(self.architecture, self.settings, images)
        features = self._features_s(images, copies, is_first=is_first)
        if self.architecture in RECURRENT:
            scans = None if self.scans is None else self.scans * images / self.images
            network = self._network(images, scans, learning)
            # The first network calibrates the second, which learns from all images, if the
            # convolutions are frozen.
            first = [Step(learning, 0.0, 0.2)] if is_final else network
            tuned = int(self.settings.get("fine_tune_epochs", 0)) > 0
            second = [Step(learning, 0.0, 0.2)] if tuned and not is_final else network
            return [Step(TUNING, tuning, 0.3), *_started(FEATURES, features, 0.3), *first, *second]
        seconds = learning_s(self.architecture, self.settings, images)
        if self.architecture in ("alexnet_svm", "autoencoder"):
            before = [Step(TUNING, tuning, 0.7)] if self.learns else []
            share = 0.1 if self.learns else 0.8
            return [*before, *_started(FEATURES, features, share), Step(learning, seconds, 0.2)]
        return _started(learning, tuning + features + seconds, 1.0, FIRST_S if is_first else 0.0)

    def of_control(self, name: str, starts_random: bool) -> list[Step]:
        """Return the steps of a control; their shares add up to 1."""
        only = 1 if self.learns else self.folds
        copies = leaked_copies(self.images)
        if name == "metadata":
            return [Step("metadata", 0.5 + 0.006 * self.images)]
        if name == "permuted":
            each = sum(step.seconds for step in self.of_fold())
            whole = not self.learns and self.images <= MOST_IMAGES_PERMUTED_WHOLE
            number = DEAR_PERMUTATIONS if self.learns else CHEAP_PERMUTATIONS
            return [Step("permuted", number * each * (self.folds if whole else 1))]
        if name == "leaked":
            fits = [
                self.of_fold(copies, is_first=number == 0, learning=LEAKED)
                for number in range(only)
            ]
            copying = Step(COPYING, COPY_S * copies * self.images, 0.2)
            return [copying, *(step for fit in fits for step in _scaled(fit, 0.8 / only))]
        if starts_random:
            return [Step(LEARNING, 0.0)]
        fits = [self.of_fold(is_first=number == 0) for number in range(only)]
        return [step for fit in fits for step in _scaled(fit, 1 / only)]

    def final(self) -> list[Step]:
        """Return the steps of the final fit."""
        return self.of_fold(is_final=True)

    def _features_s(self, images: float, copies: int, *, is_first: bool) -> float:
        """Return the seconds that a fit takes for frozen features: its own if it trained what they
        are computed with, else shared by all fits, and computed by the first.
        """
        augmented = int(self.settings.get("augmentation", 1))
        if self.architecture in EPOCH_S or self.architecture == "alexnet":
            return FEATURES_S * images * self.area if augmented > 1 else 0.0
        if self.learns:
            return FEATURES_S * images * augmented * self.area
        return FEATURES_S * copies * self.images * augmented * self.area if is_first else 0.0

    def _network(self, images: float, scans: float | None, learning: str) -> list[Step]:
        """Return the steps of one network over rows of slices or slices of scans."""
        drawn = 4 * images / ROWS_BATCH if scans is None else 2 * scans / SCANS_BATCH
        batches = min(max(INNER * drawn, 1.0), float(RECURRENT_BATCHES))
        epochs = int(self.settings["epochs"])
        seconds = epochs * (RECURRENT_EPOCH_S + RECURRENT_BATCH_S * batches)
        return _started(learning, seconds, 0.2, RECURRENT_FIRST_S)


def _started(kind: str, seconds: float, share: float, first: float = FIRST_S) -> list[Step]:
    """Return a step that begins with the seconds until its first report, if it does anything."""
    start = first if seconds else 0.0
    return [
        Step(STARTING, start, START_SHARE * share),
        Step(kind, seconds, share - START_SHARE * share),
    ]


def _scaled(steps: Sequence[Step], share: float) -> list[Step]:
    return [replace(step, share=step.share * share) for step in steps]


def tuning_s(architecture: str, settings: Mapping[str, Any], images: float) -> float:
    """Return the seconds in which a fit trains convolutions before it learns, or an autoencoder."""
    seconds = 0.0
    if settings.get("restructure") == "autoencoder" or architecture == "autoencoder":
        seconds += AUTOENCODER_S * AUTOENCODER_IMAGES
    of_epoch = min(EPOCH_IMAGES, DRAWS * images) * area_of(settings)
    return seconds + int(settings.get("fine_tune_epochs", 0)) * of_epoch * TUNED_S


def learning_s(architecture: str, settings: Mapping[str, Any], images: float) -> float:
    """Return the seconds in which a fit trains its epochs or support vector machine."""
    of_epoch = min(EPOCH_IMAGES, DRAWS * images) * area_of(settings)
    epochs = int(settings.get("epochs", 0))
    if architecture in EPOCH_S:
        return epochs * of_epoch * EPOCH_S[architecture]
    if architecture == "alexnet":
        frozen = FROZEN_S if int(settings.get("frozen", 3)) >= 3 else TUNED_S
        return epochs * of_epoch * frozen
    drawn = images * int(settings.get("augmentation", 1))
    # Of a support vector machine, the fastest.
    return 0.05 + 0.0004 * drawn + 7e-7 * drawn**2


def area_of(settings: Mapping[str, Any]) -> float:
    """Return the area of an input image, as a multiple of that of the default."""
    return float((int(settings.get("input_size", 224)) / 224) ** 2)
