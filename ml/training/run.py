"""Train a model on labeled slices and judge it: grouped cross-validation, calibration, export,
card.

Everything that is fitted (features, scaler, SVM, its C, calibration, threshold) is fitted inside
the training part of a fold; the figures are made of the pooled decisions on images that no part of
the fold's model had seen. The final model is then fitted on all images in the same way.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ml.artifacts.card import SEEN, TYPES, Card
from ml.artifacts.folder import read_card, write_model
from ml.catalogue import architecture_named
from ml.checkpoints import digest, load_json, save_json
from ml.datasets.pool import start_of
from ml.datasets.read import Dataset
from ml.datasets.seen_images import describe_weights, marks_of, seen_json
from ml.datasets.type_labels import known_types
from ml.errors import SettingError
from ml.evaluation.answers import Answers
from ml.evaluation.calibration import predictive_values_outside_band
from ml.evaluation.metrics import confusion, metrics_with_intervals, roc_points
from ml.models.contract import RECIPE, Fitted
from ml.models.fine_tuned import require_usable
from ml.networks.bleeding_types import fit_types
from ml.preprocessing.model_input import InputSpec
from ml.training.controls import blocked_because, control_names, fits_of_controls, run_controls
from ml.training.cross_validation import OutOfFold, cross_validate
from ml.training.experiment import Experiment
from ml.training.export_check import check_export
from ml.training.heat_map_tests import summary
from ml.training.inputs import read_inputs
from ml.training.operating_points import named_points
from ml.training.out_of_fold import write_predictions
from ml.training.progress import Meter, Progress, TrainingStopped
from ml.training.type_figures import figures_of_types, write_types

__all__ = ["OtherTraining", "Progress", "TrainConfig", "TrainingStopped", "train"]

PROBE_IMAGES = 16
LIBRARIES = (
    "numpy",
    "keras",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "skl2onnx",
    "opencv-python-headless",
)
LICENSE_NOTES = ("Research, non-commercial use only; not for diagnosis.",)


class OtherTraining(SettingError):
    """What a folder holds of an unfinished training cannot be continued: it had other settings or
    data, or another version began it.
    """


@dataclass(frozen=True)
class TrainConfig:
    """What to train.

    Attributes:
        architecture: a name of `ml.catalogue`.
        settings: any of its settings; the others have their defaults.
        seed: of everything random.
        init: initial weights: "random", "starter" (the convolutions of a shipped model that has not
            seen the images, else random ones), a file or a model folder.
        command: how a person repeats this; goes into the card.
        reuse: folder where fine-tuned convolutions are looked for and kept, so that trainings that
            ask for the same fine-tuning do it once; it changes no number, but for the rounding and
            the draws of whatever Keras computed with (`tuned_by` in the card).
        license_notes, notes: sentences for the card.
    """

    architecture: str
    settings: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    init: Path | Literal["random", "starter"] = "starter"
    command: str = ""
    reuse: Path | None = None
    license_notes: tuple[str, ...] = LICENSE_NOTES
    notes: tuple[str, ...] = ()


def train(
    config: TrainConfig,
    datasets: Sequence[Dataset],
    out_dir: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Card:
    """Train and judge a model; afterwards `out_dir/model` is its folder.

    Called again on the same folder with the same configuration and data it continues where it was,
    and ends with the same numbers.

    Args:
        config: what to train.
        datasets: their images are pooled; slices with unknown labels stand in their scans and never
            train.
        out_dir: gets `model`, `predictions.csv` (every out-of-fold answer, see
            `ml.evaluation.answers`) and, where the data tell types of bleeding, `types.csv` (those
            about types); `checkpoint` and `cache` in it hold what is needed to continue and vanish
            at the end.
        on_progress: told after every step.
        should_stop: asked at least every batch.

    Raises:
        DatasetError: the data cannot be trained or tested on.
        SettingError: a setting is wrong, or the folder holds another training; an `OtherTraining`
            if that is unfinished.
        ArtifactError: the initial weights are unusable.
        TrainingStopped: `should_stop` said so.

    Example:
        Twelve phantoms, one folder a class; so few images and no controls are for a try only.

        >>> from pathlib import Path
        >>> from ml.datasets.read import read_dataset
        >>> from ml.scans.phantoms import phantom, write_png
        >>> from ml.training.run import TrainConfig, train
        >>> for seed in range(36, 48):
        ...     folder = Path("heads", "hemorrhage" if seed % 2 else "normal")
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     hu = phantom(seed, hemorrhage=seed % 2 == 1, size=128)
        ...     write_png(hu, folder / f"{seed}.png")
        >>> settings = {"folds": 2, "input_size": 160, "layer": "conv3", "controls": "none"}
        >>> config = TrainConfig("alexnet_svm", settings, init="random")
        >>> card = train(config, [read_dataset(Path("heads"), "phantoms")], Path("run"))
        >>> card.export_check["passed"], card.metrics["auroc"]["n"]
        (True, 12)
        >>> sorted(path.name for path in Path("run").iterdir())
        ['model', 'predictions.csv']
    """
    architecture = architecture_named(config.architecture)
    settings = architecture.parse_settings(config.settings)
    folds, repeats = _folds_and_repeats(settings, len(datasets))
    # What starts from random weights has seen nothing.
    init, pool = start_of(
        config.init if architecture.encoder else "random", architecture.encoder, datasets, folds
    )
    seen = marks_of(init)
    start_from = describe_weights(init)
    if init != "random":
        require_usable(architecture, settings, init)  # said before the folder is claimed
    data_fingerprint = digest(*(dataset.fingerprint for dataset in datasets))
    # their files decide the order
    placed = [example.name for example in pool.examples if example.place_mm is not None]
    identity = digest(
        config.architecture,
        json.dumps([RECIPE, settings, config.seed, start_from], sort_keys=True),
        data_fingerprint,
        *placed,
    )
    finished = _claim_folder(out_dir, identity)
    if finished:
        return finished
    meter = Meter(on_progress, should_stop)
    spec = InputSpec.from_settings(settings)
    checkpoint = out_dir / "checkpoint"
    learns = bool(settings.get("fine_tune_epochs") or settings.get("epochs"))
    controls_to_run = control_names(settings, learns)
    of_controls = (
        sum(fits_of_controls(controls_to_run, learns, len(pool.labels)))
        if learns
        else bool(controls_to_run) * folds * repeats / 2
    )
    parts = _shares(folds * repeats, learns, of_controls)
    inputs = read_inputs(
        pool.examples, spec, out_dir / "cache", meter.within("reading images", *parts["reading"])
    )
    experiment = Experiment.of(
        pool,
        inputs,
        architecture=config.architecture,
        settings=settings,
        seed=config.seed,
        init=init,
        shared=checkpoint,
        reuse=config.reuse,
        types=known_types(pool.examples, pool.scans),
    )
    out_of_fold = cross_validate(
        experiment, folds, repeats, checkpoint, meter.between(*parts["folds"]), test_heat_maps=True
    )
    of_labels = replace(experiment, types=None)  # controls ask about hemorrhage alone
    controls = run_controls(
        of_labels,
        pool.examples,
        out_of_fold.learned_features,
        folds,
        checkpoint,
        meter.between(*parts["controls"]),
    )
    began = time.monotonic()
    final_progress = meter.between(*parts["final"])

    def tell_final(share: float, metrics: Mapping[str, float]) -> None:
        final_progress("final model", share, metrics)

    weak_scans = experiment.weak_scans
    final = experiment.fit(
        experiment.labeled,
        checkpoint / "final",
        tell_final,
        weak_scans,
        out_of_fold.held_out,
        out_of_fold.chosen,
    )
    of_slices, of_scans = experiment.operating_points(final.held_out)
    meter.tell("export", 0.97, {})
    files = final.export(of_slices.platt, of_scans.platt)
    types = None
    if experiment.types is not None:
        types = fit_types(
            final.descriptions, experiment.types.slices, experiment.groups, experiment.labeled
        )
        if types.names:
            files[TYPES] = types.to_onnx()
    probe = np.linspace(0, len(inputs.images) - 1, min(PROBE_IMAGES, len(inputs.images))).astype(
        int
    )
    export_check = check_export(
        files, final, of_slices.platt, of_scans.platt, types, np.asarray(inputs.images[probe])
    )
    calibrating = np.intersect1d(weak_scans, final.held_out.scans)
    taught_whole = [
        pool.examples[at]
        for at in np.flatnonzero(
            np.isin(pool.scans, weak_scans if architecture.learns_scans else calibrating)
        )
    ]
    files[SEEN] = seen_json(
        [e for e in pool.examples if e.label is not None],
        seen,
        final.learned_features,
        taught_whole,
    )
    meter.tell("figures", 0.98, {})
    known = pool.known
    card = Card(
        architecture=config.architecture,
        reads=architecture.reads,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.seed,
        settings={**settings, **{f"chosen_{name}": value for name, value in final.chosen.items()}},
        preprocessing=spec.to_dict(),
        threshold=of_slices.threshold,
        uncertain_low=of_slices.low,
        uncertain_high=of_slices.high,
        scan_threshold=of_scans.threshold,
        scan_uncertain_low=of_scans.low,
        scan_uncertain_high=of_scans.high,
        data={
            "datasets": [dataset.name for dataset in datasets],
            "fingerprint": data_fingerprint,
            "initial_weights": start_from,
            "training": identity,
            "images": int(known.sum()),
            "positive": int((pool.labels == 1).sum()),
            "negative": int((pool.labels == 0).sum()),
            "groups": len(np.unique(pool.groups[known])),
            "judged": len(experiment.testable),
            "scans": len(out_of_fold.scans.at),
            "licence_notes": list(config.license_notes),
        },
        metrics=_metrics(out_of_fold.slices, config.seed),
        metrics_by_dataset=_metrics_by_dataset(out_of_fold.slices, config.seed),
        patient_metrics=_metrics(out_of_fold.scans, config.seed),
        patient_metrics_by_dataset=_metrics_by_dataset(out_of_fold.scans, config.seed),
        band={
            level: predictive_values_outside_band(found.labels, found.zones)
            for level, found in _levels(out_of_fold)
        },
        points=named_points(
            experiment, config.architecture, out_of_fold.held_out, out_of_fold.held_out_folds
        ),
        controls=controls,
        heat_maps=summary(out_of_fold.heat_maps, experiment.groups, config.seed),
        types=figures_of_types(experiment, out_of_fold, types.names if types else ()),
        blocked_because=blocked_because(controls) or "",
        roc=roc_points(out_of_fold.slices.labels, out_of_fold.slices.probabilities[0]),
        confusion=confusion(out_of_fold.slices.labels, out_of_fold.slices.predicted[0]),
        protocol=_protocol(experiment, folds, repeats),
        export_check=export_check,
        versions=_versions(),
        seconds=round(
            out_of_fold.seconds
            + sum(control["seconds"] for control in controls)
            + time.monotonic()
            - began,
            1,
        ),
        command=config.command,
        notes=[
            *pool.notes,
            *_notes_on_weak(weak_scans, architecture.learns_scans, len(calibrating)),
            *_notes_on_tuning(out_of_fold, final),
            *config.notes,
        ],
    )
    write_predictions(out_dir / "predictions.csv", pool.examples, experiment, out_of_fold)
    write_types(out_dir / "types.csv", pool.examples, experiment, out_of_fold)
    written = write_model(out_dir / "model", card, files)
    _clear(out_dir)
    meter.end()
    return written


def _notes_on_weak(weak_scans: np.ndarray, learned: bool, calibrating: int) -> list[str]:
    if not len(weak_scans):
        return []
    if learned:
        taught = "teach the answer for a scan"
    elif calibrating:
        taught = "calibrate the answer for a scan and teach no slice"
    else:
        taught = "taught nothing, since this architecture learns from slices"
    return [
        f"{len(weak_scans)} scans are labeled as wholes only: they {taught}, are judged as"
        " patients, and are in no slice figure."
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
            " otherwise."
        ]
        if len(names) > 1
        else []
    )


def _folds_and_repeats(settings: Mapping[str, Any], datasets: int) -> tuple[int, int]:
    if settings.get("folds_by") != "data set":
        return int(settings.get("folds", 5)), int(settings.get("repeats", 1))
    if datasets < 2:
        raise SettingError("Folds by data set need at least two data sets.")
    return datasets, 1


def _shares(fits: int, learns: bool, fits_of_controls: float) -> dict[str, tuple[float, float]]:
    """Return from where to where each part of a training moves its progress, by about how long it
    takes.
    """
    fit = 10.0 if learns else 3.0
    parts = {
        "reading": 1.0 if learns else 5.0,
        "folds": fits * fit,
        "controls": fits_of_controls * fit,
        "final": fit,
    }
    ends = np.cumsum(list(parts.values())) / sum(parts.values()) * 0.96
    return {
        name: (float(end - 0.96 * size / sum(parts.values())), float(end))
        for (name, size), end in zip(parts.items(), ends, strict=True)
    }


def _versions() -> dict[str, str]:
    # whatever Keras computes with here; a program that trains nothing need not load it
    from keras.backend import backend

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in (*LIBRARIES, backend())},
    }


def _claim_folder(out_dir: Path, identity: str) -> Card | None:
    """Mark the folder as this training's own, or return the card if this training has ended there
    already.
    """
    if (out_dir / "model").exists():
        card = read_card(out_dir / "model")
        if card.data.get("training") != identity:
            raise SettingError(
                f"The folder {out_dir.name} holds the model of another training; give another"
                " folder."
            )
        _clear(out_dir)
        return card
    owner = out_dir / "checkpoint" / "training.json"
    found = load_json(owner)
    # what was being written when it was killed is hidden
    if found is None and not any(owner.parent.glob("[!.]*")):
        save_json(owner, {"identity": identity})
    elif found is None or found["identity"] != identity:
        raise OtherTraining(
            f"The folder {out_dir.name} holds an unfinished training with other settings or data,"
            " or of another version; give another folder."
        )
    return None


def _clear(out_dir: Path) -> None:
    for name in ("checkpoint", "cache"):
        shutil.rmtree(out_dir / name, ignore_errors=True)


def _levels(out_of_fold: OutOfFold) -> tuple[tuple[str, Answers], tuple[str, Answers]]:
    return ("slice", out_of_fold.slices), ("patient", out_of_fold.scans)


def _metrics(answers: Answers, seed: int) -> dict[str, dict[str, Any]]:
    return metrics_with_intervals(
        answers.labels, answers.probabilities, answers.predicted, answers.groups, seed
    )


def _metrics_by_dataset(answers: Answers, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        str(source): _metrics(answers.among(answers.sources == source), seed)
        for source in np.unique(answers.sources)
    }


def _protocol(experiment: Experiment, folds: int, repeats: int) -> str:
    target = f"sensitivity {float(experiment.settings.get('target_sensitivity', 0.95)):g}"
    if experiment.settings.get("threshold") == "one half":
        target = "probability one half"
    repeated = (
        f", repeated {repeats} times with other folds (figures are means over the repeats)"
        if repeats > 1
        else ""
    )
    split = (
        f"Stratified {folds}-fold cross-validation by group (patients and"
        f" near-duplicates){repeated}"
    )
    if experiment.settings.get("folds_by") == "data set":
        split = (
            f"Across sources: each of {folds} data sets answered for by a model that learned from"
            " the others only,"
        )
    return (
        f"{split} on {len(experiment.testable)} of {len(experiment.labeled)} images, which the"
        f" initial weights had not seen; everything that learns, calibrations and thresholds"
        f" ({target})"
        " fitted inside each training part; pooled out-of-fold answers by slice and by patient; 95"
        " % intervals by bootstrap over groups."
    )
