"""The convolutions that a task starts from, and what fine-tuning makes of them.

Several architectures ask for the same fine-tuning, and it takes minutes to hours, so they ask in
one place. A fit keeps what it got, so that it continues after an interruption. Where a training is
given a folder for reuse, other trainings take it from there; the name of the file is a hash of
everything that the fine-tuning hangs on, so no number changes. What Keras computes with is no part
of it, so that a machine with a GPU can do the fine-tunings of another; it rounds and draws
otherwise, and the card says which it was.
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
    """Return the initial weights that the task names.

    Raises:
        ArtifactError: they are unusable.
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
    """Return the setting of the local response normalization; None is what the weights' layout
    says.
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
    """Return the initial convolutions of the task after they have learned, some of the initial ones
    mixed in; rounded to half precision.

    How much of them is mixed in is no part of what a folder for reuse keeps.

    Args:
        task: what is being fitted.
        learn: positions of the images to learn from.
        layer: the convolutions up to this one learn.
        epochs: of `ml.networks.fine_tuning.fine_tune`.
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
    """Return the SHA-256 (hex) of everything that the fine-tuning hangs on; where images stand
    among others is no part of it.
    """
    found = hashlib.sha256(
        json.dumps([RECIPE, layer, epochs, task.seed, precision, normalizes(task)]).encode()
    )
    found.update(json.dumps([task.labels[learn].tolist(), task.sources[learn].tolist()]).encode())
    for name, values in sorted(start.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    for values in (task.images, task.masks):
        found.update(f"{values.dtype} {values.shape[1:]}".encode())
        for first in range(0, len(learn), CHUNK):
            found.update(values[learn[first : first + CHUNK]].tobytes())
    return found.hexdigest()
