"""The initial convolutions of a task, and their fine-tuning.

Several architectures share this step, which takes minutes to hours. A fit saves the result as a
checkpoint. If a training has a reuse folder, other trainings take the result from there; its file
name is a hash of everything that the fine-tuning depends on, so the results do not change. The
hardware is not part of the hash, so that a machine with a GPU can fine-tune for another; its
rounding and random numbers differ, and the card states which hardware it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np

from ml.checkpoints import load_or_make_arrays
from ml.models.contract import RECIPE, FitTask
from ml.networks.fine_tuning import Tuned, fine_tune
from ml.networks.weights import CONTRASTS, SOFT_TISSUE, Weights, load_weights

CHUNK = 64


def initial_weights(task: FitTask, layer: str) -> Weights:
    """Load the initial weights of the task.

    Raises:
        ArtifactError: they cannot be used.
    """
    groups = task.settings.get("groups")
    layout = str(task.settings.get("layout", "owt"))
    weights = load_weights(
        task.init, task.seed, layer, layout=layout, groups=None if groups is None else int(groups)
    )
    if task.settings.get("contrasts") == "both":
        weights = {**weights, SOFT_TISSUE: np.array(CONTRASTS, np.float16).astype(np.float32)}
    return weights


def normalizes(task: FitTask) -> bool | None:
    """Return the setting of the local response normalization; None means as in the weights'
    layout.
    """
    return {"yes": True, "no": False}.get(
        str(task.settings.get("local_response_normalisation", "auto"))
    )


def tuned_convolutions(
    task: FitTask,
    learn: np.ndarray,
    layer: str,
    epochs: int,
    report: Callable[[float, Mapping[str, float]], None],
) -> Tuned:
    """Return the fine-tuned convolutions of the task, averaged with the initial ones and rounded to
    half precision.

    A reuse folder holds the weights before averaging.

    Args:
        task: what is being fitted.
        learn: positions of the training images.
        layer: the last convolutional layer to train.
        epochs: number of epochs, see `ml.networks.fine_tuning.fine_tune`.
        report: told the share done; raises to stop.
    """
    path, state = task.own / "tuned.npz", task.own / "state.npz"
    start, precision = initial_weights(task, layer), str(task.settings["precision"])

    def tune() -> Mapping[str, np.ndarray]:
        data = task.images, task.labels, task.sources, task.masks, learn
        return fine_tune(
            start,
            *data,
            layer,
            epochs,
            task.seed,
            state,
            report,
            precision=precision,
            normalizes=normalizes(task),
        ).arrays()

    def reuse_or_tune() -> Mapping[str, np.ndarray]:
        if task.reuse is None:
            return tune()
        name = _digest(task, start, learn, layer, epochs, precision)[:32]
        return load_or_make_arrays(task.reuse / f"tuned-{name}.npz", tune)

    kept = load_or_make_arrays(path, reuse_or_tune)
    state.unlink(missing_ok=True)
    share = 0.0 if task.init == "random" else float(task.settings["initial_share"])
    return Tuned.of_arrays(kept).mixed_with(start, share)


def _digest(
    task: FitTask, start: Weights, learn: np.ndarray, layer: str, epochs: int, precision: str
) -> str:
    """Return the SHA-256 (hex) of everything that the fine-tuning depends on, independent of the
    positions of the images.
    """
    hasher = hashlib.sha256(
        json.dumps([RECIPE, layer, epochs, task.seed, precision, normalizes(task)]).encode()
    )
    hasher.update(json.dumps([task.labels[learn].tolist(), task.sources[learn].tolist()]).encode())
    for name, values in sorted(start.items()):
        hasher.update(f"{name} {values.dtype} {values.shape}".encode())
        hasher.update(values.tobytes())
    for values in (task.images, task.masks):
        hasher.update(f"{values.dtype} {values.shape[1:]}".encode())
        for first in range(0, len(learn), CHUNK):
            hasher.update(values[learn[first : first + CHUNK]].tobytes())
    return hasher.hexdigest()
