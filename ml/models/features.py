"""What architectures learn their heads on: features of every slice, from convolutions that are
frozen or learned first.

Frozen convolutions see each picture, and each of its augmented copies, once in a run; all fits
share what they gave. Convolutions or an autoencoder that learn belong to one fit, and so do their
features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ml.checkpoints import digest, load_arrays, save_arrays
from ml.models.contract import FitTask
from ml.models.fine_tuned import alexnet_of, initial_weights, normalizes, tuned_convolutions
from ml.networks import autoencoder as reconstruction
from ml.networks.convolutions import build, build_several, maps_shape, to_onnx
from ml.networks.fine_tuning import Tuned
from ml.networks.weights import Weights, layout_of
from ml.preprocessing.augmentation import vary

CHUNK = 64
# seen by an autoencoder in all; it learns from few pictures more often
PICTURES_TO_RECONSTRUCT = 8_000
MOST_EPOCHS, FEWEST_EPOCHS = 100, 5
Report = Callable[[float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Extractor:
    """Convolutions up to a layer, and what stands before them.

    `learnt` says that they, or the autoencoder, learned from images of one fit, `tuned` is what
    fine-tuning made of them, its head of cells too; the rest are arguments of
    `ml.networks.convolutions.build`.
    """

    weights: Weights
    layer: str
    size: int
    normalizes: bool | None
    restructuring: reconstruction.Weights | None
    learnt: bool = False
    tuned: Tuned | None = None

    @property
    def tuned_by(self) -> dict[str, str]:
        """What the card says of who computed the fine-tuning: nothing where there was none."""
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
        """Return the Keras model: images -> a dictionary, the maps of each of these layers."""
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
    """Return the convolutions up to `layer`, after they and the autoencoder have learned where the
    settings say so.

    Args:
        task: what is being fitted.
        layer: of the maps.
        learn: positions of the images that the convolutions may learn from.
        report: told the share done; raises to stop.
    """
    epochs = int(task.settings.get("fine_tune_epochs", 0))
    size = task.images.shape[1]
    restructuring = restructuring_of(
        task, learn, lambda share, figures: report(share * (0.3 if epochs else 1.0), figures)
    )
    if not epochs:
        start = initial_weights(task, layer)
        return Extractor(
            start, layer, size, normalizes(task), restructuring, learnt=restructuring is not None
        )
    tuned = tuned_convolutions(
        task,
        alexnet_of(task, layer),
        learn,
        epochs,
        lambda share, figures: report(0.3 + 0.7 * share, figures),
    )
    return Extractor(
        tuned.convolutions, layer, size, normalizes(task), restructuring, learnt=True, tuned=tuned
    )


def restructuring_of(
    task: FitTask, learn: np.ndarray, report: Report
) -> reconstruction.Weights | None:
    """Return the weights of an autoencoder fitted to the images at `learn`, None where the settings
    ask for none.
    """
    if task.settings.get("restructure", "none") == "none":
        return None
    return autoencoder_of(task, learn, 0, report)


def autoencoder_of(
    task: FitTask, learn: np.ndarray, epochs: int, report: Report
) -> reconstruction.Weights:
    """Return the weights of an autoencoder fitted to the images at `learn`; 0 epochs are as many as
    show it `PICTURES_TO_RECONSTRUCT`.

    It knows no labels, so fits that learn from the same images share it.
    """
    epochs = epochs or usual_epochs(len(learn))
    name = f"autoencoder-{digest(task.seed, epochs, learn.tolist())[:12]}"
    path, state = task.shared / f"{name}.npz", task.own / f"{name}-state.npz"
    kept = load_arrays(path)
    if kept is None:
        kept = reconstruction.fit_autoencoder(
            task.images, learn, task.seed, epochs, state, report
        ).weights
        save_arrays(path, kept)
        state.unlink()
    return kept


def usual_epochs(pictures: int) -> int:
    """Return how many epochs show an autoencoder `PICTURES_TO_RECONSTRUCT`, where it learns from so
    many.
    """
    return int(np.clip(PICTURES_TO_RECONSTRUCT // pictures, FEWEST_EPOCHS, MOST_EPOCHS))


def child(task: FitTask, position: int, number: int, of: int) -> np.ndarray:
    """Return the augmented copy of that number of the image at `position`, float32 (size, size, 1);
    number 0 is the image itself.

    Copies that share `of` and `number` are changed alike: slices of a scan stay in place.
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
    learnt: bool,
    by_scan: bool = False,
) -> np.ndarray:
    """Return the features of each image and of its augmented copies, float32 (copies, n, ...).

    Copies are made of what may be learned from only; features of other copies are zero. Chunk by
    chunk, so that a large set's maps never stand in memory, and kept copy by copy.

    Args:
        task: what is being fitted.
        build: returns the Keras model: images -> maps, or a dictionary of maps.
        summarize: maps (m, h, w, c), or the dictionary -> features (m, ...).
        copies: with the image itself.
        report: told the share done; raises to stop.
        learnt: the model, or a part of it, learned from images of this fit; otherwise all fits of
            the run share the features.
        by_scan: change all slices of a scan alike.
    """
    folder = task.own if learnt else task.shared
    n = len(task.images)
    # What is shared must serve every fit: all labeled images, of which each fit then takes its own
    # part. Scans are copied whole, with slices of which nobody knows whether they bleed.
    wanted = task.train if learnt else np.flatnonzero(task.labels >= 0)
    if by_scan:
        weak = task.weak if learnt else np.array(sorted(task.told), np.int64)
        wanted = np.flatnonzero(np.isin(task.scans, np.union1d(task.scans[wanted], weak)))
    model: keras.Model | None = None
    found = []
    for number in range(copies):
        path = folder / f"features-{number}.npz"
        cached = load_arrays(path)
        if cached is None:
            model = model or build()
            positions = np.arange(n) if number == 0 else wanted
            parts = []
            for start in range(0, len(positions), CHUNK):
                report((number + start / len(positions)) / copies, {})
                chunk = positions[start : start + CHUNK]
                pictures = np.stack(
                    [
                        child(task, at, number, int(task.scans[at]) if by_scan else int(at))
                        for at in chunk
                    ]
                )
                parts.append(np.asarray(summarize(model.predict_on_batch(pictures)), np.float32))
            there = np.concatenate(parts)
            whole = np.zeros((n, *there.shape[1:]), np.float32)
            whole[positions] = there
            cached = {"features": whole}
            save_arrays(path, cached)
        found.append(cached["features"])
    return np.stack(found)
