"""What architectures learn their heads on: features of every slice, from convolutions that are frozen or learnt first.

Frozen convolutions see each picture, and each of its augmented copies, once in a run; all fits share what they gave. Convolutions or an
autoencoder that learn belong to one fit, and so do their features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras
import numpy as np

from ml.augmentation import vary
from ml.checkpoints import load_arrays, save_arrays
from ml.models import FitTask, autoencoder
from ml.models.convolutions import build, to_onnx
from ml.models.fine_tuning import fine_tune
from ml.models.weights import Weights, load_weights

CHUNK = 64
PICTURES_TO_RECONSTRUCT = 16_000  # seen by an autoencoder in all; it learns from few pictures more often
MOST_EPOCHS, FEWEST_EPOCHS = 100, 5
Report = Callable[[float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Extractor:
    """Convolutions up to a layer, and what stands before them; the fields are those of `ml.models.convolutions.build`."""

    weights: Weights
    layer: str
    size: int
    normalises: bool | None
    restructuring: autoencoder.Weights | None

    def build(self) -> keras.Model:
        """Return the Keras model: images -> maps."""
        return build(self.weights, self.layer, self.size, normalises=self.normalises, restructuring=self.restructuring)

    def to_onnx(self) -> bytes:
        """Return the features graph."""
        return to_onnx(self.weights, self.layer, self.size, normalises=self.normalises, restructuring=self.restructuring)


def initial_weights(task: FitTask, layer: str) -> Weights:
    """Return the initial weights that the task names.

    Raises:
        ArtifactError: they are unusable.
    """
    groups = task.settings.get("groups")
    layout = str(task.settings.get("layout", "owt"))
    return load_weights(task.init, task.seed, layer, layout=layout, groups=None if groups is None else int(groups))


def normalises(task: FitTask) -> bool | None:
    """Return the setting of the local response normalisation; None is what the weights' layout says."""
    return {"yes": True, "no": False}.get(str(task.settings.get("local_response_normalisation", "auto")))


def extractor_of(task: FitTask, layer: str, learn: np.ndarray, report: Report) -> Extractor:
    """Return the convolutions up to `layer`, after they and the autoencoder have learnt where the settings say so.

    Args:
        task: what is being fitted.
        layer: of the maps.
        learn: positions of the images that the convolutions may learn from.
        report: told the share done; raises to stop.
    """
    weights = initial_weights(task, layer)
    epochs = int(task.settings.get("fine_tune_epochs", 0))
    size = task.images.shape[1]
    restructuring = restructuring_of(task, learn, lambda share, figures: report(share * (0.3 if epochs else 1.0), figures))
    if not epochs:
        return Extractor(weights, layer, size, normalises(task), restructuring)
    kept = load_arrays(task.own / "weights.npz")
    if kept is None:
        state = task.own / "state.npz"
        data = task.images, task.labels, task.sources, task.masks, learn

        def later(share: float, figures: Mapping[str, float]) -> None:
            report(0.3 + 0.7 * share, figures)

        weights = fine_tune(weights, *data, layer, epochs, task.seed, state, later).convolutions
        kept = {key: values.astype(np.float16) for key, values in weights.items()}
        save_arrays(task.own / "weights.npz", kept)
        state.unlink()
    return Extractor({key: values.astype(np.float32) for key, values in kept.items()}, layer, size, normalises(task), restructuring)


def restructuring_of(task: FitTask, learn: np.ndarray, report: Report) -> autoencoder.Weights | None:
    """Return the weights of an autoencoder fitted to the images at `learn`, None where the settings ask for none."""
    if task.settings.get("restructure", "none") == "none":
        return None
    path, state = task.own / "autoencoder.npz", task.own / "autoencoder-state.npz"
    kept = load_arrays(path)
    if kept is None:
        epochs = int(np.clip(PICTURES_TO_RECONSTRUCT // len(learn), FEWEST_EPOCHS, MOST_EPOCHS))
        kept = autoencoder.fit_autoencoder(task.images, learn, task.seed, epochs, state, report).weights
        save_arrays(path, kept)
        state.unlink()
    return kept


def child(task: FitTask, position: int, number: int, of: int) -> np.ndarray:
    """Return the augmented copy of that number of the image at `position`, float32 (size, size, 1); number 0 is the image itself.

    Copies that share `of` and `number` are changed alike: slices of a scan stay in place.
    """
    image = np.asarray(task.images[position], np.float32)
    if number == 0:
        return image
    random = np.random.default_rng([task.seed, of, number])
    return vary(image[..., 0], np.zeros((1, 1), np.uint8), random)[0][..., np.newaxis]


def features_of(
    task: FitTask,
    extractor: Extractor,
    summarise: Callable[[np.ndarray], np.ndarray],
    copies: int,
    report: Report,
    *,
    by_scan: bool = False,
) -> np.ndarray:
    """Return the features of each image and of its augmented copies, float32 (copies, n, ...).

    Copies are made of what may be learnt from only; features of other copies are zero. Chunk by chunk, so that a large set's maps never
    stand in memory, and kept copy by copy.

    Args:
        task: what is being fitted.
        extractor: images -> maps.
        summarise: maps (m, h, w, c) -> features (m, ...).
        copies: with the image itself.
        report: told the share done; raises to stop.
        by_scan: change all slices of a scan alike.
    """
    frozen = extractor.restructuring is None and not task.settings.get("fine_tune_epochs", 0)
    folder = task.shared if frozen else task.own
    n = len(task.images)
    # What is shared must serve every fit: all labelled images, of which each fit then takes its own part.
    wanted = np.flatnonzero(task.labels >= 0) if frozen else task.train
    model: keras.Model | None = None
    found = []
    for number in range(copies):
        path = folder / f"features-{number}.npz"
        cached = load_arrays(path)
        if cached is None:
            model = model or extractor.build()
            positions = np.arange(n) if number == 0 else wanted
            parts = []
            for start in range(0, len(positions), CHUNK):
                report((number + start / len(positions)) / copies, {})
                chunk = positions[start : start + CHUNK]
                pictures = np.stack([child(task, at, number, int(task.scans[at]) if by_scan else int(at)) for at in chunk])
                parts.append(np.asarray(summarise(np.asarray(model.predict_on_batch(pictures))), np.float32))
            there = np.concatenate(parts)
            whole = np.zeros((n, *there.shape[1:]), np.float32)
            whole[positions] = there
            cached = {"features": whole}
            save_arrays(path, cached)
        found.append(cached["features"])
    return np.stack(found)
