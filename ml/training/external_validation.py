"""External validation of a finished model on a labeled data set: slice-level and patient-level
metrics, and a table of all predictions.

Images from the model's training are recognized by file and by perceptual hash, counted, and
excluded from the headline metrics with all slices of their groups. No image is refused: the score
of the check "not a head CT" is reported with each prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.checkpoints import digest, load_json, save_json
from ml.datasets.examples import UNKNOWN, Example, scan_key, slice_of
from ml.datasets.pool import in_scan_order, numbered
from ml.datasets.read import Dataset
from ml.datasets.seen_images import all_marks_of, notes_on_marks, seen_among
from ml.errors import ArtifactError, ImageError, SettingError
from ml.evaluation.answers import COLUMNS, write_answers
from ml.evaluation.calibration import ABOVE, BELOW, UNCERTAIN, predictive_values_outside_band, zones
from ml.evaluation.metrics import metrics_with_intervals, undefined_metrics
from ml.inference.gate import REFUSED_FROM, Gate, gate
from ml.inference.predictor import Finding, Predictor
from ml.scans.slices import Series, Slice
from ml.training.answer_rows import whose_answer

PREDICTIONS = ("filename", "label", "patient", "slice", "probability")
ANSWERS = (*COLUMNS, "not_head_ct")
KEEP_EVERY_S = 5.0
MOST_NAMED = 20
SEED = 0


@dataclass(frozen=True)
class Level:
    """Predictions at one level, with known and unknown labels; `seen` marks images whose group was
    in the training data.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    seen: np.ndarray

    def metrics(self, with_seen: bool) -> dict[str, dict[str, Any]]:
        """Return the metrics of labeled images, excluding those seen in training unless
        `with_seen`.
        """
        known = self.labels != UNKNOWN
        counted = known if with_seen else known & ~self.seen
        if known.any() and not counted.any():
            return undefined_metrics("all of it was in the model's training data")
        at = np.flatnonzero(counted)
        return metrics_with_intervals(
            self.labels[at], self.probabilities[at], self.predicted[at], self.groups[at], SEED
        )


def evaluate(
    model_dir: Path,
    dataset: Dataset,
    out_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 1,
) -> dict[str, Any]:
    """Evaluate a model on a data set and write `metrics.json`, `predictions.csv` and `answers.csv`
    (see `ml.evaluation.answers`); return the first.

    Patient by patient, the slices are predicted as a series in anatomical order; an image without a
    patient is a series of one. Unreadable images have no prediction; their patient is predicted
    from the rest. Called again after an interruption, it resumes.

    Args:
        model_dir: the model.
        dataset: with any labels, possibly of a single class or none.
        out_dir: output folder, new or of the same evaluation.
        on_progress: called with (images done, number of images).
        threads: number of threads of the model.

    Raises:
        ArtifactError: the model is unusable.
        SettingError: the folder holds a different evaluation or a training.
    """
    if any((out_dir / name).exists() for name in ("model", "checkpoint")):
        raise SettingError(
            f"The folder {out_dir.name} holds a training, whose predictions would be overwritten;"
            " give another folder."
        )
    # each image is checked once, below
    predictor = Predictor(model_dir, threads, checks_head_ct=False)
    judge, notes = _judge()
    examples = in_scan_order(dataset.examples)
    scans = numbered([scan_key(example) for example in examples])
    identity = digest(predictor.card.id, dataset.fingerprint)
    began = time.monotonic()
    findings = _score(predictor, judge, examples, scans, out_dir, identity, on_progress)
    marks, without_marks = _marks(model_dir)
    notes += without_marks
    seen_images = seen_among(examples, marks)
    groups = np.array([example.group for example in examples])
    seen = np.isin(groups, groups[seen_images])
    slices, patients = _levels(predictor, examples, scans, findings, groups, seen, dataset.unread)
    card = predictor.card
    if overlap := int(seen_images.sum()):
        notes.append(
            f"The model's training has seen {overlap} of the {len(examples)} images; they and the"
            f" other slices of their groups, {int(seen.sum())} in total, are excluded from the"
            " metrics under slice and patient."
        )
    without = sum(example.patient is None for example in examples)
    if without:
        which = (
            "No image names its patient"
            if without == len(examples)
            else f"{without} images name no patient"
        )
        notes.append(f"{which}; each counts as a patient of its own.")
    unknown = int((slices.labels == UNKNOWN).sum())
    if unknown:
        notes.append(
            f"{unknown} images have no label: they are used for their patient's prediction, but"
            " excluded from the slice metrics."
        )
    notes += _notes_on_unread(examples, dataset.unread)
    oddness = np.array([score for finding in findings for score in finding["not_head_ct"]])
    if odd := int((oddness >= REFUSED_FROM).sum()):
        notes.append(
            f"{odd} of {len(oddness)} images do not look like head CT (not_head_ct in"
            " answers.csv); they are evaluated nevertheless."
        )
    counted = patients.labels != UNKNOWN
    zone = np.array(
        [
            UNCERTAIN if finding["uncertain"] else ABOVE if finding["positive"] else BELOW
            for finding in findings
        ]
    )
    slice_zone = zones(slices.probabilities, card.uncertain_low, card.uncertain_high)
    known, fresh = slices.labels != UNKNOWN, ~slices.seen
    result: dict[str, Any] = {
        "identity": identity,
        "model": {
            "id": card.id,
            "architecture": card.architecture,
            "reads": card.reads,
            "settings": card.settings,
        },
        "threshold": card.threshold,
        "patient_threshold": card.point_of(2)[0],
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": len(examples),
        "scans": len(findings),
        "unknown": unknown,
        "unread": len(dataset.unread),
        "not_head_ct": _oddness_block(oddness, judge),
        "slice": slices.metrics(with_seen=False),
        "patient": patients.metrics(with_seen=False),
        "overlap": overlap,
        "left_out": int(seen.sum()),
        "all": {
            "slice": slices.metrics(with_seen=True),
            "patient": patients.metrics(with_seen=True),
        },
        "band": {
            "slice": predictive_values_outside_band(
                slices.labels[known & fresh], slice_zone[known & fresh]
            ),
            "patient": predictive_values_outside_band(
                patients.labels[counted & ~patients.seen], zone[counted & ~patients.seen]
            ),
        },
        "notes": notes,
        "problems": list(dataset.problems),
        "seconds": round(time.monotonic() - began, 1),
    }
    _write_predictions(out_dir / "predictions.csv", examples, slices.probabilities, dataset.unread)
    write_answers(
        out_dir / "answers.csv", _rows(examples, scans, slices, patients, oddness), ANSWERS
    )
    save_json(out_dir / "metrics.json", result)
    (out_dir / "partial.json").unlink(missing_ok=True)
    return result


def _judge() -> tuple[Gate | None, list[str]]:
    try:
        return gate(), []
    except ArtifactError as err:
        return None, [str(err)]


def _oddness_block(scores: np.ndarray, judge: Gate | None) -> dict[str, Any]:
    """Summarize the scores for "not a head CT" (n,), with the number of images that the service
    would refuse.
    """
    if judge is None:
        return {
            "refused": None,
            "n": 0,
            "share": None,
            "median": None,
            "highest": None,
            "reason": "the check is not available",
        }
    return {
        "refused": int((scores >= REFUSED_FROM).sum()),
        "refused_from": REFUSED_FROM,
        "n": len(scores),
        "share": float((scores >= REFUSED_FROM).mean()),
        "median": float(np.median(scores)),
        "highest": float(scores.max()),
    }


def _notes_on_unread(examples: Sequence[Example], unread: Sequence[Example]) -> list[str]:
    if not unread:
        return []
    named = ", ".join(example.name for example in unread[:MOST_NAMED]) + (
        ", ..." if len(unread) > MOST_NAMED else ""
    )
    notes = [
        f"{len(unread)} of {len(examples) + len(unread)} images cannot be read and have no"
        f" prediction: {named}."
    ]
    lost = {example.patient for example in unread if example.patient} - {
        example.patient for example in examples
    }
    if lost:
        notes.append(
            "Patients without any readable image, excluded from all metrics:"
            f" {', '.join(sorted(lost))}."
        )
    return notes


def _score(
    predictor: Predictor,
    judge: Gate | None,
    examples: Sequence[Example],
    scans: np.ndarray,
    out_dir: Path,
    identity: str,
    on_progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Return the prediction for each scan, resuming from saved ones."""
    partial = out_dir / "partial.json"
    order = digest(*((example.name, example.place_mm) for example in examples), *scans)
    kept = _kept(partial)
    if any(
        found and found.get("identity") != identity
        for found in (kept, _kept(out_dir / "metrics.json"))
    ):
        raise SettingError(
            f"The folder {out_dir.name} holds an evaluation of another model or data set; give"
            " another folder."
        )
    # Patients or slice numbers may have been corrected in the meantime.
    findings: list[dict[str, Any]] = kept["answers"] if kept.get("order") == order else []
    starts = [*np.unique(scans, return_index=True)[1].tolist(), len(examples)]
    saved_at = time.monotonic()
    try:
        for scan in range(len(findings), len(starts) - 1):
            on_progress(starts[scan], len(examples))
            findings.append(_answer(predictor, judge, examples[starts[scan] : starts[scan + 1]]))
            if time.monotonic() - saved_at > KEEP_EVERY_S:
                save_json(partial, {"identity": identity, "order": order, "answers": findings})
                saved_at = time.monotonic()
    finally:
        # Also on Ctrl-C in the middle of a scan: the list holds complete scans only.
        save_json(partial, {"identity": identity, "order": order, "answers": findings})
    on_progress(len(examples), len(examples))
    return findings


def _kept(path: Path) -> dict[str, Any]:
    """Load the results of an evaluation; empty if there is no file."""
    try:
        found = load_json(path)
    except ValueError:
        found = path.name
    return {} if found is None else found if isinstance(found, dict) else {"identity": None}


def _answer(
    predictor: Predictor, judge: Gate | None, examples: Sequence[Example]
) -> dict[str, Any]:
    try:
        # Slices with too little contrast were already handled when the data set was read.
        slices = tuple(slice_of(example, may_be_bare=True) for example in examples)
    except ImageError as err:  # it was readable when the data set was read
        raise ImageError(f"{examples[0].name} and the slices after it: {err}") from err
    finding: Finding = predictor.predict(Series(slices, steps_mm=_steps_mm(examples, slices)))
    return {
        "probability": finding.probability,
        "positive": finding.positive,
        "uncertain": finding.uncertain,
        "slices": list(finding.slice_probabilities),
        "not_head_ct": [judge.score(one) for one in slices] if judge else [],
    }


def _steps_mm(examples: Sequence[Example], slices: Sequence[Slice]) -> tuple[float, ...]:
    """Return the slice spacing of a scan, for averaging thin slices into slabs as in serving; None
    if it is inconsistent.
    """
    places = [example.place_mm for example in examples if example.place_mm is not None]
    are_alike = len({(one.pixels.shape, one.unit) for one in slices}) == 1
    return tuple(np.diff(places).tolist()) if are_alike and len(places) == len(examples) else ()


def _marks(model_dir: Path) -> tuple[Any, list[str]]:
    try:
        marks = all_marks_of(model_dir)
    except ArtifactError as err:
        return (), [str(err)]
    return marks, notes_on_marks(marks)


def _levels(
    predictor: Predictor,
    examples: Sequence[Example],
    scans: np.ndarray,
    findings: Sequence[dict[str, Any]],
    groups: np.ndarray,
    seen: np.ndarray,
    unread: Sequence[Example],
) -> tuple[Level, Level]:
    labels = np.array([UNKNOWN if example.label is None else example.label for example in examples])
    probabilities = np.array([value for finding in findings for value in finding["slices"]])
    first = np.unique(scans, return_index=True)[1]
    scan_labels = np.full(len(findings), UNKNOWN)
    np.maximum.at(scan_labels, scans, labels)
    np.maximum.at(
        scan_labels,
        scans,
        [UNKNOWN if example.scan_label is None else example.scan_label for example in examples],
    )
    number_of = {scan_key(examples[position]): number for number, position in enumerate(first)}
    for example in unread:  # hemorrhage on an unreadable slice still counts for the patient
        if example.label is not None and (number := number_of.get(scan_key(example))) is not None:
            scan_labels[number] = max(scan_labels[number], example.label)
    scan_seen = np.zeros(len(findings), bool)
    np.logical_or.at(scan_seen, scans, seen)
    return (
        Level(labels, probabilities, probabilities >= predictor.card.threshold, groups, seen),
        Level(
            scan_labels,
            np.array([finding["probability"] for finding in findings]),
            np.array([finding["positive"] for finding in findings], bool),
            groups[first],
            scan_seen,
        ),
    )


def _write_predictions(
    path: Path, examples: Sequence[Example], probabilities: np.ndarray, unread: Sequence[Example]
) -> None:
    probability_of = {
        example.name: float(probability)
        for example, probability in zip(examples, probabilities, strict=True)
    }
    rows = (
        (
            example.name,
            example.label,
            example.scan_name,
            example.slice,
            probability_of.get(example.name),
        )
        for example in in_scan_order([*examples, *unread])
    )
    write_answers(path, (dict(zip(PREDICTIONS, row, strict=True)) for row in rows), PREDICTIONS)


def _rows(
    examples: Sequence[Example],
    scans: np.ndarray,
    slices: Level,
    patients: Level,
    oddness: np.ndarray,
) -> list[dict[str, Any]]:
    rows = []
    first = np.unique(scans, return_index=True)[1]
    for name, level, positions in (
        ("slice", slices, np.arange(len(examples))),
        ("patient", patients, first),
    ):
        for number, position in enumerate(positions):
            rows.append(
                whose_answer(examples[position], name, level.groups[number])
                | {
                    "label": "" if level.labels[number] == UNKNOWN else int(level.labels[number]),
                    "probability": repr(float(level.probabilities[number])),
                    "predicted": int(level.predicted[number]),
                    "overlap": int(level.seen[number]),
                    "not_head_ct": (
                        repr(float(oddness[number])) if name == "slice" and len(oddness) else ""
                    ),
                }
            )
    return rows
