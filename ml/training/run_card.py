"""The card of a training run: its metrics, and sentences on how they were obtained."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from ml.artifacts.card import Card, Control, TrainingData
from ml.evaluation.answers import Answers
from ml.evaluation.calibration import predictive_values_outside_band
from ml.evaluation.metrics import confusion, metrics_with_intervals, roc_points
from ml.figures import Metrics
from ml.models.contract import Fitted
from ml.training.controls import blocked_because
from ml.training.cross_validation import OutOfFold
from ml.training.experiment import Experiment
from ml.training.final_model import FinalModel
from ml.training.operating_points import named_points, threshold_curves
from ml.training.outline_figures import outline_figures
from ml.training.plan import Plan
from ml.training.type_figures import figures_of_types
from ml.validation.heat_map_tests import summary

LIBRARIES = (
    "numpy",
    "keras",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "skl2onnx",
    "opencv-python-headless",
)


def card_of_run(
    plan: Plan,
    experiment: Experiment,
    out_of_fold: OutOfFold,
    controls: list[Control],
    final: FinalModel,
) -> Card:
    """Return the card of a finished training run; its duration ends with this call."""
    config, slices, scans = plan.config, out_of_fold.slices, out_of_fold.scans
    chosen = {f"chosen_{name}": value for name, value in final.fitted.chosen.items()}
    return Card(
        architecture=config.architecture,
        reads=plan.architecture.reads,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.seed,
        settings={**plan.settings, **chosen},
        preprocessing=plan.spec.to_dict(),
        threshold=final.of_slices.threshold,
        uncertain_low=final.of_slices.low,
        uncertain_high=final.of_slices.high,
        scan_threshold=final.of_scans.threshold,
        scan_uncertain_low=final.of_scans.low,
        scan_uncertain_high=final.of_scans.high,
        data=_data(plan, experiment, out_of_fold),
        metrics=_metrics(slices, config.seed),
        metrics_by_dataset=_metrics_by_dataset(slices, config.seed),
        patient_metrics=_metrics(scans, config.seed),
        patient_metrics_by_dataset=_metrics_by_dataset(scans, config.seed),
        band={
            "slice": predictive_values_outside_band(slices.labels, slices.zones),
            "patient": predictive_values_outside_band(scans.labels, scans.zones),
        },
        points=named_points(
            experiment, config.architecture, out_of_fold.held_out, out_of_fold.held_out_folds
        ),
        curves=threshold_curves(experiment, config.architecture, out_of_fold.held_out),
        controls=controls,
        heat_maps=summary(out_of_fold.heat_maps, experiment.groups, config.seed),
        outlines=outline_figures(out_of_fold.outlines, slices, config.seed),
        types=figures_of_types(experiment, out_of_fold, final.types),
        blocked_because=blocked_because(controls) or "",
        roc=roc_points(slices.labels, slices.probabilities[0]),
        confusion=confusion(slices.labels, slices.predicted[0]),
        protocol=_protocol(experiment, plan.folds, plan.repeats),
        export_check=final.export_check,
        versions=_versions(),
        seconds=_seconds(out_of_fold, controls, final),
        command=config.command,
        notes=[
            *plan.pool.notes,
            *_notes_on_weak(
                experiment.weak_scans, plan.architecture.learns_scans, final.calibrating
            ),
            *_notes_on_tuning(out_of_fold, final.fitted),
            *config.notes,
        ],
    )


def _seconds(out_of_fold: OutOfFold, controls: Sequence[Control], final: FinalModel) -> float:
    fits = out_of_fold.seconds + sum(control.seconds for control in controls)
    return round(fits + time.monotonic() - final.began, 1)


def _data(plan: Plan, experiment: Experiment, out_of_fold: OutOfFold) -> TrainingData:
    pool = plan.pool
    return TrainingData(
        datasets=plan.datasets,
        fingerprint=plan.fingerprint,
        initial_weights=plan.start_from,
        training=plan.identity,
        images=int(pool.known.sum()),
        positive=int((pool.labels == 1).sum()),
        negative=int((pool.labels == 0).sum()),
        groups=len(np.unique(pool.groups[pool.known])),
        judged=len(experiment.testable),
        scans=len(out_of_fold.scans.at),
        licence_notes=list(plan.config.license_notes),
    )


def _notes_on_weak(weak_scans: np.ndarray, learned: bool, calibrating: int) -> list[str]:
    if not len(weak_scans):
        return []
    if learned:
        taught = "train the scan output"
    elif calibrating:
        taught = "calibrate the scan output and train no slice output"
    else:
        taught = "are not used for training because this architecture learns from slices"
    return [
        f"{len(weak_scans)} scans have only scan-level labels: they {taught}, are tested by"
        " patient, and are excluded from all figures by slice."
    ]


def _notes_on_tuning(out_of_fold: OutOfFold, final: Fitted) -> list[str]:
    names = sorted(
        {
            chosen["tuned_by"]
            for chosen in (*out_of_fold.chosen, final.chosen)
            if "tuned_by" in chosen
        }
    )
    return (
        [
            f"Folds and final model were fine-tuned by {' and '.join(names)}, which round and draw"
            " random numbers differently."
        ]
        if len(names) > 1
        else []
    )


def _versions() -> dict[str, str]:
    # Imported here because a program that does not train need not load Keras.
    from keras.backend import backend

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in (*LIBRARIES, backend())},
    }


def _metrics(answers: Answers, seed: int) -> Metrics:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )


def _metrics_by_dataset(answers: Answers, seed: int) -> dict[str, Metrics]:
    return {
        str(source): _metrics(answers.among(answers.sources == source), seed)
        for source in np.unique(answers.sources)
    }


def _protocol(experiment: Experiment, folds: int, repeats: int) -> str:
    settings = experiment.settings
    threshold = {
        "sensitivity": f"sensitivity {float(settings.get('target_sensitivity', 0.95)):g}",
        "specific": "specificity 0.95",
        "one half": "probability one half",
    }.get(str(settings.get("threshold")), "sensitivity and specificity balanced")
    repeated = (
        f", repeated {repeats} times with different folds (figures are means over the repeats)"
        if repeats > 1
        else ""
    )
    split, calibrated = (
        f"Stratified {folds}-fold cross-validation by group (patients and"
        f" near-duplicates){repeated}",
        "inside each training part",
    )
    if settings.get("folds_by") == "data set":
        split, calibrated = (
            f"Leave one data set out: each of {folds} is tested with a model trained only on the"
            " others,",
            "inside each training part, and calibrations and thresholds on the held-out"
            " predictions for the other data sets",
        )
    return (
        f"{split} on {len(experiment.testable)} of {len(experiment.labeled)} images, which the"
        " initial weights were not trained on. Everything that is fitted, including thresholds"
        f" ({threshold}), is fitted {calibrated}. Held-out predictions are pooled, by slice and by"
        " patient. 95% intervals are bootstrap percentiles over groups; for the calibration error,"
        " which resampling overestimates, they are corrected for the bias of the median."
    )
