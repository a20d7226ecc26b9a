"""Features of every slice, from frozen or fine-tuned convolutions, on which the heads are
trained.

With frozen convolutions, the features of each image and of its augmented copies are computed once
per run and shared by all fits. If convolutions or an autoencoder are trained, their features belong
to one fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import keras
import numpy as np

from ml.checkpoints import digest, load_or_make_arrays
from ml.models.contract import FitTask
from ml.models.fine_tuned import alexnet_of, initial_weights, normalizes, tuned_convolutions
from ml.networks import autoencoder
from ml.networks.convolutions import build, build_several, maps_shape, to_onnx
from ml.networks.fine_tuning import Tuned
from ml.networks.weights import Weights, layout_of
from ml.preprocessing.augmentation import vary

CHUNK = 64
# images shown to an autoencoder in total; if there are few, each is shown more often
PICTURES_TO_RECONSTRUCT = 8_000
MOST_EPOCHS, FEWEST_EPOCHS = 100, 5
Report = Callable[[float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Extractor:
    """Convolutions up to a layer, and what precedes them.

    `learned`: the convolutions, or the autoencoder, were trained on the images of one fit; `tuned`:
    the fine-tuned weights with their cell head; the other fields are arguments of
    `ml.networks.convolutions.build`.
    """

    weights: Weights
    layer: str
    size: int
    normalizes: bool | None
    restructuring: autoencoder.Weights | None
    learned: bool = False
    tuned: Tuned | None = None

    @property
    def tuned_by(self) -> dict[str, str]:
        """The card's entry about the hardware of the fine-tuning; empty without fine-tuning."""
        return {"tuned_by": self.tuned.by} if self.tuned else {}

    @property
    def shape(self) -> tuple[int, int]:
        """The side (h = w) and the channels of the maps."""
        side, channels = maps_shape(self.layer, self.size, layout_of(self.weights))
        return side, channels * (1 if self.restructuring is None else 2)

    def build(self) -> keras.Model:
        """Return the Keras model: images -> maps."""
        return build(
            self.weights,
            self.layer,
            self.size,
            normalizes=self.normalizes,
            restructuring=self.restructuring,
        )

    def build_several(self, layers: Sequence[str]) -> keras.Model:
        """Return the Keras model: images -> a dictionary with the maps of each of these layers."""
        return build_several(
            self.weights,
            layers,
            self.size,
            normalizes=self.normalizes,
            restructuring=self.restructuring,
        )

    def to_onnx(self, *, both_ways: bool = False) -> bytes:
        """Return the features graph; see `ml.networks.convolutions.to_onnx`."""
        how = self.weights, self.layer, self.size
        return to_onnx(
            *how, both_ways=both_ways, normalizes=self.normalizes, restructuring=self.restructuring
        )


def extractor_of(task: FitTask, layer: str, learn: np.ndarray, report: Report) -> Extractor:
    """Return the convolutions up to `layer`, fine-tuned and with a trained autoencoder if the
    settings say so.

    Args:
        task: what is being fitted.
        layer: of the maps.
        learn: positions of the training images of the convolutions.
        report: called with the share done, 0..1; raises to stop.
    """
    epochs = int(task.settings.get("fine_tune_epochs", 0))
    size = task.images.shape[1]
    restructuring = restructuring_of(
        task, learn, lambda share, figures: report(share * (0.3 if epochs else 1.0), figures)
    )
    if not epochs:
        start = initial_weights(task, layer)
        return Extractor(
            start, layer, size, normalizes(task), restructuring, learned=restructuring is not None
        )
    tuned = tuned_convolutions(
        task,
        alexnet_of(task, layer),
        learn,
        epochs,
        lambda share, figures: report(0.3 + 0.7 * share, figures),
    )
    return Extractor(
        tuned.convolutions, layer, size, normalizes(task), restructuring, learned=True, tuned=tuned
    )


def restructuring_of(
    task: FitTask, learn: np.ndarray, report: Report
) -> autoencoder.Weights | None:
    """Return the weights of an autoencoder fitted to the images at `learn`, None if the settings
    have none.
    """
    if task.settings.get("restructure", "none") == "none":
        return None
    return autoencoder_of(task, learn, 0, report)


def autoencoder_of(
    task: FitTask, learn: np.ndarray, epochs: int, report: Report
) -> autoencoder.Weights:
    """Return the weights of an autoencoder fitted to the images at `learn`; 0 epochs means as many
    as it takes to show it `PICTURES_TO_RECONSTRUCT` images.

    It uses no labels, so fits with the same training images share it.
    """
    epochs = epochs or usual_epochs(len(learn))
    name = f"autoencoder-{digest(task.seed, epochs, learn.tolist())[:12]}"
    path, state = task.shared / f"{name}.npz", task.folder / f"{name}-state.npz"
    weights = load_or_make_arrays(
        path,
        lambda: (
            autoencoder.fit_autoencoder(
                task.images, learn, task.seed, epochs, state, report
            ).weights
        ),
    )
    state.unlink(missing_ok=True)
    return weights


def usual_epochs(pictures: int) -> int:
    """Return the number of epochs in which that many images are shown `PICTURES_TO_RECONSTRUCT`
    times in total.
    """
    return int(np.clip(PICTURES_TO_RECONSTRUCT // pictures, FEWEST_EPOCHS, MOST_EPOCHS))


def augmented_copy(task: FitTask, position: int, number: int, of: int) -> np.ndarray:
    """Return augmented copy `number` of the image at `position`, float32 (size, size, 1); number 0
    is the image itself.

    Copies with the same `of` and `number` are transformed alike, so that the slices of a scan stay
    aligned.
    """
    image = np.asarray(task.images[position], np.float32)
    if number == 0:
        return image
    random = np.random.default_rng([task.seed, of, number])
    return vary(image[..., 0], np.zeros((1, 1), np.uint8), random)[0][..., np.newaxis]


def features_of(
    task: FitTask,
    build: Callable[[], keras.Model],
    summarize: Callable[[Any], np.ndarray],
    copies: int,
    report: Report,
    *,
    learned: bool,
    by_scan: bool = False,
) -> np.ndarray:
    """Return the features of each image and of its augmented copies, float32 (copies, n, ...).

    Only training images have copies; the features of other copies are zero. Computed in chunks, so
    that the maps of a large data set need not fit in memory, and cached per copy.

    Args:
        task: what is being fitted.
        build: returns the Keras model: images -> maps, or a dictionary of maps.
        summarize: maps (m, h, w, c), or the dictionary -> features (m, ...).
        copies: number of copies, including the image itself.
        report: called with the share done, 0..1; raises to stop.
        learned: the model, or a part of it, was trained on images of this fit; otherwise all fits
            of the run share the features.
        by_scan: transform all slices of a scan alike.
    """
    folder = task.folder if learned else task.shared
    n = len(task.images)
    # Shared features must serve every fit, so they cover all labeled images. Scans are copied as a
    # whole, with their unlabeled slices.
    wanted = task.train if learned else np.flatnonzero(task.labels >= 0)
    if by_scan:
        weak_scans = (
            task.weak_scans if learned else np.array(sorted(task.given_scan_labels), np.int64)
        )
        wanted = np.flatnonzero(np.isin(task.scans, np.union1d(task.scans[wanted], weak_scans)))
    model = cache(build)

    def of_copy(number: int) -> dict[str, np.ndarray]:
        positions = np.arange(n) if number == 0 else wanted
        parts = []
        for start in range(0, len(positions), CHUNK):
            report((number + start / len(positions)) / copies, {})
            chunk = positions[start : start + CHUNK]
            pictures = np.stack(
                [
                    augmented_copy(task, at, number, int(task.scans[at]) if by_scan else int(at))
                    for at in chunk
                ]
            )
            parts.append(np.asarray(summarize(model().predict_on_batch(pictures)), np.float32))
        features = np.concatenate(parts)
        whole = np.zeros((n, *features.shape[1:]), np.float32)
        whole[positions] = features
        return {"features": whole}

    all_copies = [
        load_or_make_arrays(folder / f"features-{number}.npz", partial(of_copy, number))["features"]
        for number in range(copies)
    ]
    return np.stack(all_copies)
