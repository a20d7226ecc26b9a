"""The trainable architectures, one module each, found by its name in the catalogue.

Every module has one function `fit(task: FitTask) -> Fitted`. It is called once for each fold and
once for the final model, and must use the images at `task.train` for everything it fits.

A scan is a series of slices, a single picture a series of one. Every architecture answers for each
slice and for each scan: a slice architecture aggregates its slices (`ml.networks.aggregation`), a
series architecture reads them in anatomical order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ml.evaluation.calibration import Platt
from ml.networks.aggregation import aggregate_scans

RECIPE = 4
"""To be raised whenever a fit computes something else from the same settings: nothing that an older
one left is then gone on from.
"""


@dataclass(frozen=True)
class HeldOut:
    """Raw decisions on images inside `task.train`, by models of the same kind that did not see
    their groups.

    Attributes:
        slices: positions of slices with known labels.
        decisions: their raw decisions.
        scans: numbers of scans.
        scan_decisions: their raw decisions; a scan of one slice has that slice's.
    """

    slices: np.ndarray
    decisions: np.ndarray
    scans: np.ndarray
    scan_decisions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What all fits of a run have in common.

    Attributes:
        images: float32 (n, size, size, 1) in 0..1, of all data sets together; those of a scan are
            neighbors, from foot to head.
        labels: (n,) 0, 1 or `UNKNOWN`.
        groups, sources: (n,) what belongs together; the data set each image is from.
        scans: (n,) number of the scan each image belongs to, 0..s-1, never falling.
        masks: uint8 (n, m, m), 1 where an outline shows blood, 0 where it shows none, 255 where
            nobody drew; in the frame of `images`.
        unseen: (n,) False where the initial weights have seen the image: it may train, and never
            tests anything.
        settings: all settings of the architecture.
        seed: of everything random.
        init: initial weights: a file, a model folder, or "random".
        shared: folder for what all fits share (features of frozen convolutions).
        reuse: folder where fine-tuned convolutions are kept for other trainings
            (`ml.models.fine_tuned`).
        told: the label, 0 or 1, of each scan that was labeled as a whole, by its number.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    sources: np.ndarray
    scans: np.ndarray
    masks: np.ndarray
    unseen: np.ndarray
    settings: Mapping[str, Any]
    seed: int
    init: Path | str
    shared: Path
    reuse: Path | None = None
    told: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FitTask(RunData):
    """What one fit may use.

    Attributes:
        train: positions that this fit may learn from, all with known labels; a scan is wholly in or
            wholly out.
        own: folder for what this fit alone keeps, so that it continues after an interruption.
        report: told the share of this fit that is done and figures to show, at least every batch;
            raises to stop the fit.
        held_out: for the final fit, the cross-validation's decisions on what it learns from: a fit
            that takes them for its calibration need not keep images back, and learns from all.
        chosen: for the final fit, what each fit of the cross-validation chose.
        weak: numbers of scans that this fit may learn from, though nobody labeled a slice of
            theirs; what was told of them is in `told`. An architecture that learns from slices
            alone leaves them out.
    """

    train: np.ndarray
    own: Path
    report: Callable[[float, Mapping[str, float]], None]
    held_out: HeldOut | None = None
    chosen: Sequence[Mapping[str, Any]] = ()
    weak: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Fitted:
    """What a fit hands back. Raw decisions are real numbers, higher for hemorrhage; `Platt` turns
    them into probabilities.

    Attributes:
        decisions: (n,) for all slices of the task; the caller looks only at those the fit did not
            learn from.
        scan_decisions: (s,) for all scans.
        held_out: what calibrations and thresholds are fitted to.
        chosen: what was chosen inside the training part (C of the SVM, say).
        export: calibration of slices, calibration of scans -> files of the model folder by name.
        reference: images of one scan, both calibrations -> (maps, slice probabilities, scan
            probability) as Keras and scikit-learn
            compute them: what the export must equal.
        learnt_features: True if the convolutions learned from the training images.
        descriptions: float32 (n, 2c), average and maximum of the maps of each slice, as
            `features.onnx` gives them; what tells types of bleeding apart
            (`ml.networks.bleeding_types`).
    """

    decisions: np.ndarray
    scan_decisions: np.ndarray
    held_out: HeldOut
    chosen: Mapping[str, Any]
    export: Callable[[Platt, Platt], dict[str, bytes]]
    reference: Callable[[np.ndarray, Platt, Platt], tuple[np.ndarray, np.ndarray, float]]
    learnt_features: bool
    descriptions: np.ndarray


def fit_of(architecture: str) -> Callable[[FitTask], Fitted]:
    """Return the `fit` of an architecture of the catalogue."""
    fit: Callable[[FitTask], Fitted] = importlib.import_module(f"ml.models.{architecture}").fit
    return fit


def scan_rule_of(architecture: str) -> Callable[[np.ndarray], float] | None:
    """Return how an architecture makes the decision of a scan from those of its slices (n,), each
    made by itself; None where it reads the scan as a whole.
    """
    module = importlib.import_module(f"ml.models.{architecture}")
    rule: Callable[[np.ndarray], float] | None = getattr(module, "SCAN_RULE", None)
    return rule


def held_out_of(decisions: np.ndarray, at: np.ndarray, scans: np.ndarray) -> HeldOut:
    """Return the held-out decisions of a slice architecture: those of the slices at `at` (of all),
    aggregated by scan.
    """
    at = np.sort(at)
    return HeldOut(
        at, decisions[at], np.unique(scans[at]), aggregate_scans(decisions[at], scans[at])
    )
