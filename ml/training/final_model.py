"""The final model of a training run: fitted on all images, exported and checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ml.artifacts.card import SEEN, TYPES, ExportCheck
from ml.datasets.seen_images import marks_of, seen_json
from ml.evaluation.calibration import OperatingPoint
from ml.models.contract import Fitted
from ml.networks.bleeding_types import TypesHead, fit_types
from ml.training.cross_validation import OutOfFold
from ml.training.experiment import Experiment
from ml.training.export_check import check_export
from ml.training.plan import Plan
from ml.training.type_figures import distinguished_types

PROBE_IMAGES = 16


@dataclass(frozen=True)
class FinalModel:
    """The final model of a training run.

    Attributes:
        fitted: the result of the architecture's fit.
        of_slices, of_scans: calibrations, thresholds and bands.
        files: of the model folder by name, without the card.
        types: names of the types of hemorrhage that it predicts.
        export_check: differences between the files and the trained model.
        calibrating: number of scans with only a scan-level label that calibrate it.
        began: when the fit started, by `time.monotonic()`.
    """

    fitted: Fitted
    of_slices: OperatingPoint
    of_scans: OperatingPoint
    files: dict[str, bytes]
    types: tuple[str, ...]
    export_check: ExportCheck
    calibrating: int
    began: float


def fit_final(
    plan: Plan,
    experiment: Experiment,
    out_of_fold: OutOfFold,
    report: Callable[[float, Mapping[str, float]], None],
    on_export: Callable[[], None],
) -> FinalModel:
    """Fit, export and check the model.

    Args:
        plan: of the training.
        experiment: the training data.
        out_of_fold: the cross-validation, whose decisions may calibrate it.
        report: called with the fraction of the fit that is done, 0..1; raises to stop.
        on_export: called after the fit; raises to stop.
    """
    began = time.monotonic()
    fitted = experiment.fit(
        experiment.labeled,
        experiment.shared / "final",
        report,
        experiment.weak_scans,
        out_of_fold.held_out,
        out_of_fold.chosen,
    )
    of_slices, of_scans = experiment.operating_points(fitted.held_out)
    on_export()
    files = fitted.export(of_slices.platt, of_scans.platt)
    types = _types_head(experiment, fitted, out_of_fold)
    if types is not None and types.names:
        files[TYPES] = types.to_onnx()
    n = len(experiment.images)
    probe = np.linspace(0, n - 1, min(PROBE_IMAGES, n)).astype(int)
    check = check_export(
        files, fitted, of_slices.platt, of_scans.platt, types, np.asarray(experiment.images[probe])
    )
    calibrating = np.intersect1d(experiment.weak_scans, fitted.held_out.scans)
    files[SEEN] = _seen(plan, experiment, fitted, calibrating)
    return FinalModel(
        fitted=fitted,
        of_slices=of_slices,
        of_scans=of_scans,
        files=files,
        types=types.names if types else (),
        export_check=check,
        calibrating=len(calibrating),
        began=began,
    )


def _types_head(experiment: Experiment, fitted: Fitted, out_of_fold: OutOfFold) -> TypesHead | None:
    """Return the head for the types that were distinguished on held-out data."""
    if experiment.types is None:
        return None
    return fit_types(
        fitted.descriptions,
        experiment.types.slices,
        experiment.groups,
        experiment.labeled,
        distinguished_types(experiment, out_of_fold),
    )


def _seen(plan: Plan, experiment: Experiment, fitted: Fitted, calibrating: np.ndarray) -> bytes:
    """Return seen.json: the labeled slices, and the scans with only a scan-level label that trained
    or calibrated the model.
    """
    examples = plan.pool.examples
    taught = experiment.weak_scans if plan.architecture.learns_scans else calibrating
    whole = [examples[at] for at in np.flatnonzero(np.isin(plan.pool.scans, taught))]
    labeled = [example for example in examples if example.label is not None]
    return seen_json(labeled, marks_of(plan.init), fitted.learned_features, whole)
