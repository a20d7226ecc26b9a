"""The interface of the trainable architectures, one module each, named as in the catalogue.

Every module has one function `fit(task: FitTask) -> Fitted`. It is called once per fold and once
for the final model, and must fit everything on the images at `task.train`. Its `SCAN_RULE` is what
`scan_rule_of` returns.

A scan is a series of slices; a single image is a series of one. Every architecture predicts each
slice and each scan: a slice architecture aggregates its slices (`ml.networks.aggregation`), a
series architecture reads them in anatomical order.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.evaluation.calibration import Platt
from ml.networks.aggregation import aggregate_scans

RECIPE = 6
"""Increment this whenever the results of a fit change for the same settings, so that no run resumes
from an older checkpoint.
"""


@dataclass(frozen=True)
class HeldOut:
    """Raw decisions on images in `task.train`, by models of the same kind that were trained without
    their groups.

    Attributes:
        slices: positions of slices with known labels.
        decisions: their raw decisions.
        scans: numbers of scans.
        scan_decisions: their raw decisions; for a scan of one slice, that of the slice.
    """

    slices: np.ndarray
    decisions: np.ndarray
    scans: np.ndarray
    scan_decisions: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Data shared by all fits of a run.

    Attributes:
        images: float32 (n, size, size, 1) in 0..1, of all data sets; those of a scan are
            consecutive, from foot to head.
        labels: (n,) 0, 1 or `UNKNOWN`.
        groups, sources: (n,) group and data set of each image; a group is never split between
            folds.
        scans: (n,) number of each image's scan, 0..s-1, nondecreasing.
        masks: uint8 (n, m, m), segmentation masks in the frame of `images`: 1 inside an outlined
            hemorrhage, 0 outside, 255 if there is no annotation.
        unseen: (n,) False for images in the training data of the initial weights: they may be used
            for training, never for testing.
        settings: all settings of the architecture.
        seed: random seed.
        init: initial weights: a file, a model folder, or "random".
        shared: folder for results that all fits share (features of frozen convolutions).
        reuse: folder where fine-tuned convolutions are cached for other trainings
            (`ml.models.fine_tuned`).
        given_scan_labels: scan number -> scan-level label, 0 or 1, of the scans that have one.
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
    given_scan_labels: Mapping[int, int] = field(default_factory=dict)

    @property
    def first_of_scan(self) -> np.ndarray:
        """Position of each scan's first slice (s,)."""
        return np.asarray(np.unique(self.scans, return_index=True)[1])

    @property
    def scan_labels(self) -> np.ndarray:
        """The label of each scan (s,): 1 if any slice shows blood or the scan was labeled so, 0 if
        all known labels are negative, else unknown.
        """
        labels = np.full(int(self.scans.max()) + 1, UNKNOWN)
        np.maximum.at(labels, self.scans, self.labels)
        for scan, label in self.given_scan_labels.items():
            labels[scan] = max(labels[scan], label)
        return labels

    @property
    def scan_sizes(self) -> np.ndarray:
        """Number of slices of each scan (s,)."""
        return np.bincount(self.scans)


@dataclass(frozen=True, kw_only=True)
class FitTask(RunData):
    """The input of one fit.

    Attributes:
        train: positions of the training images, all with known labels; the slices of a scan are
            never split.
        folder: the checkpoints of this fit.
        report: called at least once per batch with the fraction done and metrics to show; raises to
            stop the fit.
        held_out: for the final fit, the cross-validation's decisions on its training images: a fit
            that calibrates on them need not hold out any images.
        chosen: for the final fit, the hyperparameters that each fold selected.
        weak_scans: numbers of the weakly labeled training scans: none of their slices is labeled,
            and their labels are in `given_scan_labels`. An architecture that learns from slice
            labels alone ignores them.
    """

    train: np.ndarray
    folder: Path
    report: Callable[[float, Mapping[str, float]], None]
    held_out: HeldOut | None = None
    chosen: Sequence[Mapping[str, Any]] = ()
    weak_scans: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Fitted:
    """The result of a fit. Raw decisions are real numbers, higher for hemorrhage; `Platt` maps them
    to probabilities.

    Attributes:
        chosen: hyperparameters selected in the training part (such as C of the SVM).
        scan_decisions: (s,) of all scans.
        held_out: held-out decisions for calibration and thresholds.
        chosen: hyperparameters selected in the training part (such as C of the SVM).
        export: calibrations of slices and of scans -> files of the model folder by name.
        reference: images of one scan, both calibrations -> (maps, slice probabilities, scan
            probability) as computed by Keras and scikit-learn; the exported graphs must agree.
        learned_features: True if the convolutions learned from the training images.
        descriptions: float32 (n, 2c), average and maximum of each slice's maps, as output by
            `features.onnx`; the features for types of hemorrhage (`ml.networks.bleeding_types`).
        outlines: float16 (n, m, m), the probability of hemorrhage at each position of the slices
            that have decisions; None if the architecture gives no outlines.
        reference_outlines: images -> their outlines (n, m, m), which the exported graph must
            reproduce; None as above.
    """

    decisions: np.ndarray
    scan_decisions: np.ndarray
    held_out: HeldOut
    chosen: Mapping[str, Any]
    export: Callable[[Platt, Platt], dict[str, bytes]]
    reference: Callable[[np.ndarray, Platt, Platt], tuple[np.ndarray, np.ndarray, float]]
    learned_features: bool
    descriptions: np.ndarray
    outlines: np.ndarray | None = None
    reference_outlines: Callable[[np.ndarray], np.ndarray] | None = None


def fit_of(architecture: str) -> Callable[[FitTask], Fitted]:
    """Return the `fit` of an architecture of the catalogue."""
    fit: Callable[[FitTask], Fitted] = importlib.import_module(f"ml.models.{architecture}").fit
    return fit


def scan_rule_of(architecture: str) -> Callable[[np.ndarray], float] | None:
    """Return the rule by which an architecture aggregates independent decisions on slices (n,) into
    that of the scan; None if it reads the scan as a whole.
    """
    module = importlib.import_module(f"ml.models.{architecture}")
    rule: Callable[[np.ndarray], float] | None = module.SCAN_RULE
    return rule


def held_out_of(decisions: np.ndarray, at: np.ndarray, scans: np.ndarray) -> HeldOut:
    """Return the held-out decisions of a slice architecture: those of the slices at `at` (of all),
    aggregated by scan.
    """
    at = np.sort(at)
    return HeldOut(
        at, decisions[at], np.unique(scans[at]), aggregate_scans(decisions[at], scans[at])
    )
