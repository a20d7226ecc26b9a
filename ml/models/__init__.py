"""The trainable architectures, one module each, found by its name in the catalogue.

Every module has one function `fit(task: FitTask) -> Fitted`. It is called once for each fold and once for the final model, and
must use the images at `task.train` for everything it fits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.evaluation import Platt


@dataclass(frozen=True)
class FitTask:
    """What one fit may use.

    Attributes:
        images: float32 (n, size, size, 1) in 0..1, of all data sets together.
        labels: (n,) 0 or 1.
        groups, sources: (n,) what belongs together; the data set each image is from.
        held_out_allowed: (n,) False where the initial weights have seen the image: it may train, and never tests anything.
        train: positions that this fit may learn from; all others stand in its test fold.
        settings: all settings of the architecture.
        seed: of everything random.
        init: initial weights: a file, a model folder, or "random".
        shared: folder for what all fits of a run share (features of frozen convolutions).
        own: folder for what this fit alone keeps, so that it continues after an interruption.
        report: told the share of this fit that is done and figures to show, at least every batch; raises to stop the fit.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray
    held_out_allowed: np.ndarray
    train: np.ndarray
    settings: Mapping[str, Any]
    seed: int
    init: Path | str
    shared: Path
    own: Path
    report: Callable[[float, Mapping[str, float]], None]


@dataclass(frozen=True)
class Fitted:
    """What a fit hands back.

    Attributes:
        decisions: (n,) raw decisions for all images of the task; the caller looks only at those the fit did not learn from.
        calibrate_on: positions inside `task.train` that were held out once by folds within the training part.
        calibration_decisions: their raw decisions, by models that did not see their groups.
        chosen: what was chosen inside the training part (C of the SVM, say).
        export: calibration -> files of the model folder by name.
        reference: images, calibration -> (maps, probabilities) as Keras and scikit-learn compute them: what the export must equal.
        learnt_features: True if the convolutions learnt from the training images.
    """

    decisions: np.ndarray
    calibrate_on: np.ndarray
    calibration_decisions: np.ndarray
    chosen: Mapping[str, Any]
    export: Callable[[Platt], dict[str, bytes]]
    reference: Callable[[np.ndarray, Platt], tuple[np.ndarray, np.ndarray]]
    learnt_features: bool


def fit_of(architecture: str) -> Callable[[FitTask], Fitted]:
    """Return the `fit` of an architecture of the catalogue."""
    fit: Callable[[FitTask], Fitted] = importlib.import_module(f"{__name__}.{architecture}").fit
    return fit
