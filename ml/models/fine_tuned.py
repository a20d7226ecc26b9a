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
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from ml.catalogue import Architecture
from ml.checkpoints import load_arrays, save_arrays
from ml.models.contract import FitTask
from ml.networks.convolutions import AlexNet
from ml.networks.encoder import Encoder
from ml.networks.fine_tuning import LabeledSlices, Schedule, Tuned, fine_tune
from ml.networks.googlenet import GoogLeNet
from ml.networks.weights import Weights, load_weights

TUNING_RECIPE = 4
"""To be raised whenever a fine-tuning computes something else from the same arguments: what an
older one left in a folder for reuse is then not found.
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
    """Return the initial weights of AlexNet that the task names.

    Raises:
        ArtifactError: they are unusable.
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
    """Return the setting of the local response normalization; None is what the weights' layout
    says.
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
    """Return the initial convolutions of the task after they have learned, some of the initial ones
    mixed in; rounded to what the encoder stores.

    How much of them is mixed in is no part of what a folder for reuse keeps.

    Args:
        task: what is being fitted.
        encoder: whose convolutions learn.
        learn: positions of the images to learn from.
        epochs: of `ml.networks.fine_tuning.fine_tune`.
        report: receives the share done; raises to stop.
    """
    path, state = task.own / "tuned.npz", task.own / "state.npz"
    cached, start = load_arrays(path), encoder.initial(task.init, task.seed)
    if cached is None:
        schedule = Schedule(epochs, task.seed, str(task.settings["precision"]))
        slices = LabeledSlices(task.images, task.labels, task.sources, task.masks, learn)
        name = f"tuned-{_digest(slices, start, encoder, schedule)[:32]}.npz" if task.reuse else ""
        cached = load_arrays(task.reuse / name) if task.reuse else None
        if cached is None:
            cached = fine_tune(start, encoder, slices, schedule, state, report).arrays()
            if task.reuse:
                save_arrays(task.reuse / name, cached)
        save_arrays(path, cached)
        state.unlink(missing_ok=True)
    share = 0.0 if task.init == "random" else float(task.settings["initial_share"])
    return Tuned.of_arrays(cached).mixed_with(start, share, encoder)


def _digest(slices: LabeledSlices, start: Weights, encoder: Encoder, schedule: Schedule) -> str:
    """Return the SHA-256 (hex) of everything that the fine-tuning depends on; where images stand
    among others is no part of it.
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
