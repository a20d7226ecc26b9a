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
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from ml.catalogue import Architecture
from ml.checkpoints import RESUMED, load_or_make_arrays
from ml.models.contract import FitTask
from ml.networks.convolutions import AlexNet
from ml.networks.encoder import Encoder
from ml.networks.fine_tuning import LabeledSlices, Schedule, Tuned, fine_tune
from ml.networks.googlenet import GoogLeNet
from ml.networks.weights import Weights, load_weights

TUNING_RECIPE = 5
"""Increment this whenever the results of a fine-tuning change for the same arguments, so that no
run reuses an older one.
"""
CHUNK = 64


def alexnet_of(task: FitTask, layer: str) -> AlexNet:
    """Return the encoder that the task's settings describe, up to `layer`."""
    settings = task.settings
    groups = settings.get("groups")
    return AlexNet(
        layer,
        normalizes(task),
        None if groups is None else int(groups),
        str(settings.get("layout", "owt")),
        settings.get("contrasts") == "both",
    )


def initial_weights(task: FitTask, layer: str) -> Weights:
    """Return the initial weights of AlexNet that the task specifies.

    Raises:
        ArtifactError: they cannot be used.
    """
    return alexnet_of(task, layer).initial(task.init, task.seed)


def require_usable(
    architecture: Architecture, settings: Mapping[str, Any], init: Path | str
) -> None:
    """Check initial weights before a training begins.

    Raises:
        ArtifactError: the architecture cannot start from them.
    """
    if architecture.encoder == "googlenet":
        GoogLeNet().initial(init, 0)
    elif architecture.encoder == "alexnet":
        groups = settings.get("groups")
        load_weights(init, 0, "conv2", groups=None if groups is None else int(groups))


def normalizes(task: FitTask) -> bool | None:
    """Return the setting of the local response normalization; None means that the layout of the
    weights decides.
    """
    return {"yes": True, "no": False}.get(
        str(task.settings.get("local_response_normalisation", "auto"))
    )


def tuned_convolutions(
    task: FitTask,
    encoder: Encoder,
    learn: np.ndarray,
    epochs: int,
    report: Callable[[float, Mapping[str, float]], None],
) -> Tuned:
    """Return the fine-tuned convolutions of the task, averaged with some of the initial ones and
    rounded to the precision in which the encoder stores them.

    A reuse folder holds the weights before averaging.

    Args:
        task: what is being fitted.
        encoder: the encoder whose convolutions are trained.
        learn: positions of the training images; the fine-tuning is monitored on some of the other
            images in the training part.
        epochs: of `ml.networks.fine_tuning.fine_tune`.
        report: called with the fraction done; raises to stop.
    """
    path, state = task.folder / "tuned.npz", task.folder / "state.npz"
    start = encoder.initial(task.init, task.seed)
    schedule = Schedule(epochs, task.seed, str(task.settings["precision"]))
    held_back = np.setdiff1d(task.train, learn)
    slices = LabeledSlices(task.images, task.labels, task.sources, task.masks, learn, held_back)

    def tune() -> Mapping[str, np.ndarray]:
        return fine_tune(start, encoder, slices, schedule, state, report).arrays()

    def reuse_or_tune() -> Mapping[str, np.ndarray]:
        if task.reuse is None:
            return tune()
        name = _digest(slices, start, encoder, schedule)[:32]
        return load_or_make_arrays(task.reuse / f"tuned-{name}.npz", tune)

    cached = load_or_make_arrays(path, reuse_or_tune)
    state.unlink(missing_ok=True)
    report(1.0, {RESUMED: 1.0})  # no progress unless a checkpoint or reuse folder had the weights
    share = 0.0 if task.init == "random" else float(task.settings["initial_share"])
    return Tuned.of_arrays(cached).mixed_with(start, share, encoder)


def _digest(slices: LabeledSlices, start: Weights, encoder: Encoder, schedule: Schedule) -> str:
    """Return the SHA-256 (hex) of everything that the fine-tuning depends on; the position of
    images among others is not part of it.
    """
    learn = slices.learn
    how = [TUNING_RECIPE, encoder.name, encoder.learning_rate, *astuple(schedule)]
    hashed = hashlib.sha256(json.dumps(how).encode())
    hashed.update(
        json.dumps([slices.labels[learn].tolist(), slices.sources[learn].tolist()]).encode()
    )
    for name, values in sorted(start.items()):
        hashed.update(f"{name} {values.dtype} {values.shape}".encode())
        hashed.update(values.tobytes())
    for values in (slices.images, slices.masks):
        hashed.update(f"{values.dtype} {values.shape[1:]}".encode())
        for first in range(0, len(learn), CHUNK):
            hashed.update(values[learn[first : first + CHUNK]].tobytes())
    return hashed.hexdigest()
