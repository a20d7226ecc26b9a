"""Train a model on labelled slices and judge it: grouped cross-validation, calibration, export, card.

Everything that is fitted (features, scaler, SVM, its C, calibration, threshold) is fitted inside the training part of a fold; the
figures are made of the pooled decisions on images that no part of the fold's model had seen. The final model is then fitted on
all images in the same way.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from ml import evaluation
from ml.artifacts import FEATURES, HEAD, SEEN, Card, read_card, write_model
from ml.catalogue import STARTER_DIR, SettingError, architecture_named
from ml.checkpoints import load_json, save_json
from ml.datasets import Dataset, DatasetError, Example
from ml.grouping import digest, stratified_group_folds
from ml.images import ImageError, read_series
from ml.models import FitTask, Fitted, fit_of
from ml.preprocessing import InputSpec, to_input
from ml.progress import Meter, Progress, TrainingStopped
from ml.provenance import Pool, describe_weights, marks_of, pool_datasets, seen_json

__all__ = ["Progress", "TrainConfig", "TrainingStopped", "train"]

EXPORT_LIMIT = 1e-4
PROBE_IMAGES = 16
LIBRARIES = ("numpy", "keras", "tensorflow", "scikit-learn", "onnx", "onnxruntime", "skl2onnx", "opencv-python-headless")
LICENCE_NOTES = ("Research, non-commercial use only; not for diagnosis.",)


@dataclass(frozen=True)
class TrainConfig:
    """What to train.

    Attributes:
        architecture: a name of `ml.catalogue`.
        settings: any of its settings; the others have their defaults.
        seed: of everything random.
        init: initial weights: "random", "starter" (the convolutions of the shipped model), a .npz file or a model folder.
        command: how a person repeats this; goes into the card.
        licence_notes, notes: sentences for the card.
    """

    architecture: str
    settings: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    init: Path | Literal["random", "starter"] = "starter"
    command: str = ""
    licence_notes: tuple[str, ...] = LICENCE_NOTES
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Verdicts:
    """Out-of-fold answers for the images at `positions`."""

    positions: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray


def train(
    config: TrainConfig,
    datasets: Sequence[Dataset],
    out_dir: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Card:
    """Train and judge a model; afterwards `out_dir/model` is its folder.

    Called again on the same folder with the same configuration and data it continues where it was, and ends with the same numbers.

    Args:
        config: what to train.
        datasets: their labelled images are pooled; unknown labels never train.
        out_dir: `checkpoint` and `cache` in it hold what is needed to continue and vanish at the end.
        on_progress: told after every step.
        should_stop: asked at least every batch.

    Raises:
        DatasetError: the data cannot be trained or tested on.
        SettingError: a setting is wrong, or the folder holds another training.
        ArtifactError: the initial weights are unusable.
        TrainingStopped: `should_stop` said so.
    """
    architecture = architecture_named(config.architecture)
    settings = architecture.parse_settings(config.settings)
    init = STARTER_DIR if config.init == "starter" else config.init
    folds = int(settings["folds"])
    seen = marks_of(init)
    pool = pool_datasets(datasets, seen, folds)
    start_from = describe_weights(init)
    data_fingerprint = digest(*(dataset.fingerprint for dataset in datasets))
    identity = digest(config.architecture, json.dumps([settings, config.seed, start_from], sort_keys=True), data_fingerprint)
    finished = _claim_folder(out_dir, identity)
    if finished:
        return finished
    meter = Meter(on_progress, should_stop, tuned=bool(settings.get("fine_tune_epochs")))
    spec = InputSpec()
    images = _inputs(pool.examples, spec, out_dir / "cache" / "images.npy", meter)

    def fit(train_at: np.ndarray, name: str, stage: str, start: float, end: float) -> Fitted:
        own = out_dir / "checkpoint" / name
        task = FitTask(
            images=images,
            labels=pool.labels,
            groups=pool.groups,
            sources=pool.sources,
            held_out_allowed=pool.unseen,
            train=train_at,
            settings=settings,
            seed=config.seed,
            init=init,
            shared=out_dir / "checkpoint",
            own=own,
            report=lambda share, metrics: meter.tell(stage, start + share * (end - start), metrics),
        )
        return fit_of(config.architecture)(task)

    judged = np.flatnonzero(pool.unseen)
    target = float(settings["target_sensitivity"])
    verdicts = _cross_validate(fit, pool, judged, folds, config.seed, target, out_dir / "checkpoint", meter)
    final = fit(np.arange(len(pool.labels)), "final", "final model", meter.after_folds, 0.96)
    platt, threshold, band = _calibrate(final, pool.labels, target)
    meter.tell("export", 0.97, {})
    files = final.export(platt)
    probe = np.linspace(0, len(images) - 1, min(PROBE_IMAGES, len(images))).astype(int)
    export_check = _check_export(files, final, platt, np.asarray(images[probe]))
    files[SEEN] = seen_json(pool.examples, seen, final.learnt_features)
    meter.tell("figures", 0.98, {})
    card = Card(
        architecture=config.architecture,
        reads=architecture.reads,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=config.seed,
        settings={**settings, **{f"chosen_{name}": value for name, value in final.chosen.items()}},
        preprocessing=spec.to_dict(),
        threshold=threshold,
        uncertain_low=band[0],
        uncertain_high=band[1],
        data={
            "datasets": [dataset.name for dataset in datasets],
            "fingerprint": data_fingerprint,
            "initial_weights": start_from,
            "training": identity,
            "images": len(pool.labels),
            "positive": int((pool.labels == 1).sum()),
            "negative": int((pool.labels == 0).sum()),
            "groups": len(np.unique(pool.groups)),
            "judged": len(judged),
            "licence_notes": list(config.licence_notes),
        },
        metrics=_metrics(pool, verdicts, config.seed),
        metrics_by_dataset={
            source: _metrics(pool, _among(verdicts, pool.sources[verdicts.positions] == source), config.seed)
            for source in sorted(set(pool.sources[judged]))
        },
        roc=evaluation.roc_points(pool.labels[verdicts.positions], verdicts.probabilities),
        confusion=evaluation.confusion(pool.labels[verdicts.positions], verdicts.predicted),
        protocol=_protocol(folds, target, len(judged), len(pool.labels)),
        export_check=export_check,
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        command=config.command,
        notes=[*pool.notes, *config.notes],
    )
    written = write_model(out_dir / "model", card, files)
    _clear(out_dir)
    meter.tell("done", 1.0, {})
    return written


def _cross_validate(
    fit: Callable[[np.ndarray, str, str, float, float], Fitted],
    pool: Pool,
    judged: np.ndarray,
    folds: int,
    seed: int,
    target: float,
    checkpoint: Path,
    meter: Meter,
) -> _Verdicts:
    """Return the verdicts on all judged images, each by the model of the fold that did not see it."""
    probabilities, predicted = np.full(len(pool.labels), np.nan), np.zeros(len(pool.labels), bool)
    always = np.flatnonzero(~pool.unseen)
    for number, (learn, held) in enumerate(stratified_group_folds(pool.labels[judged], pool.groups[judged], folds, seed)):
        start, end = (meter.before_folds + n / folds * (meter.after_folds - meter.before_folds) for n in (number, number + 1))
        stage = f"fold {number + 1} of {folds}"
        test = judged[held]
        done = load_json(checkpoint / f"fold-{number}.json")
        if done is None:
            fitted = fit(np.concatenate([always, judged[learn]]), f"fold-{number}", stage, start, end)
            platt, threshold, _ = _calibrate(fitted, pool.labels, target)
            done = {"probabilities": platt(fitted.decisions[test]).tolist(), "threshold": threshold}
            save_json(checkpoint / f"fold-{number}.json", done)
            shutil.rmtree(checkpoint / f"fold-{number}", ignore_errors=True)
        probabilities[test] = done["probabilities"]
        predicted[test] = probabilities[test] >= done["threshold"]
        meter.tell(stage, end, {"fold_auroc": evaluation.auroc(pool.labels[test], probabilities[test])})
    return _Verdicts(judged, probabilities[judged], predicted[judged])


def _calibrate(fitted: Fitted, labels: np.ndarray, target: float) -> tuple[evaluation.Platt, float, tuple[float, float]]:
    """Return calibration, threshold and uncertain band, fitted to what was held out within the training part."""
    truth = labels[fitted.calibrate_on]
    platt = evaluation.fit_platt(truth, fitted.calibration_decisions)
    probabilities = platt(fitted.calibration_decisions)
    threshold = evaluation.threshold_at_sensitivity(truth, probabilities, target)
    return platt, threshold, evaluation.uncertain_band(truth, probabilities, threshold, target)


def _claim_folder(out_dir: Path, identity: str) -> Card | None:
    """Mark the folder as this training's own, or return the card if this training has ended there already."""
    if (out_dir / "model").exists():
        card = read_card(out_dir / "model")
        if card.data.get("training") != identity:
            raise SettingError(f"The folder {out_dir.name} holds the model of another training; give another folder.")
        _clear(out_dir)
        return card
    owner = out_dir / "checkpoint" / "training.json"
    found = load_json(owner)
    if found is None:
        save_json(owner, {"identity": identity})
    elif found["identity"] != identity:
        raise SettingError(f"The folder {out_dir.name} holds an unfinished training with other settings or data; give another folder.")
    return None


def _clear(out_dir: Path) -> None:
    for name in ("checkpoint", "cache"):
        shutil.rmtree(out_dir / name, ignore_errors=True)


def _inputs(examples: Sequence[Example], spec: InputSpec, cache: Path, meter: Meter) -> np.ndarray:
    """Return all inputs, float32 (n, size, size, 1), as a file in memory's place: a large set never stands in memory at once."""
    if cache.is_file():
        return np.asarray(np.load(cache, mmap_mode="r"))
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_name(f".{cache.name}")
    shape = (len(examples), spec.size, spec.size, 1)
    inputs = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    for position, example in enumerate(examples):
        try:
            inputs[position] = to_input(read_series([example.path]).slices[0], spec)[0]
        except ImageError as err:
            raise DatasetError(f"{example.name}: {err}") from err
        meter.tell("reading images", (position + 1) / len(examples) * meter.before_folds, {})
    inputs.flush()
    unfinished.replace(cache)
    return np.asarray(np.load(cache, mmap_mode="r"))


def _check_export(files: Mapping[str, bytes], final: Fitted, platt: evaluation.Platt, images: np.ndarray) -> dict[str, Any]:
    """Compare what ONNX Runtime computes from the exported graphs with Keras and scikit-learn.

    Probabilities differ as they are, maps as a share of their largest value, since single precision is relative.
    """
    maps, probabilities = final.reference(images, platt)
    exported_maps = onnxruntime.InferenceSession(files[FEATURES]).run(["maps"], {"images": images})[0]
    exported = onnxruntime.InferenceSession(files[HEAD]).run(["slice_probability"], {"maps": exported_maps})[0]
    of_maps = float(np.abs(maps - exported_maps).max() / max(float(np.abs(maps).max()), 1.0))
    largest = max(of_maps, float(np.abs(probabilities - exported).max()))
    return {"largest_difference": largest, "limit": EXPORT_LIMIT, "passed": largest <= EXPORT_LIMIT}


def _metrics(pool: Pool, verdicts: _Verdicts, seed: int) -> dict[str, dict[str, Any]]:
    at = verdicts.positions
    return evaluation.metrics_with_intervals(pool.labels[at], verdicts.probabilities, verdicts.predicted, pool.groups[at], seed)


def _among(verdicts: _Verdicts, chosen: np.ndarray) -> _Verdicts:
    return _Verdicts(verdicts.positions[chosen], verdicts.probabilities[chosen], verdicts.predicted[chosen])


def _protocol(folds: int, target: float, judged: int, images: int) -> str:
    return (
        f"Stratified {folds}-fold cross-validation by group (patients and near-duplicates) on {judged} of {images} images, which the "
        "initial weights had not seen; features, scaler, SVM, calibration and threshold "
        f"(sensitivity {target:g}) fitted inside each training part; pooled out-of-fold answers; 95 % intervals by bootstrap over groups."
    )
