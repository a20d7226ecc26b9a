"""Score a finished model once on a labelled data set: a figure for each slice and for each patient, and every answer in a table.

What the model's training has seen is recognised by file and picture, counted, and left out of the headline with all slices of its group.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ml.answers import write_answers
from ml.artifacts import ArtifactError
from ml.calibration import trust_in_zones, zones
from ml.catalogue import SettingError
from ml.checkpoints import load_json, save_json
from ml.datasets import Dataset
from ml.evaluation import metrics_with_intervals, undefined_metrics
from ml.grouping import digest
from ml.images import ImageError, Series, read_series
from ml.inference import Finding, Predictor
from ml.layouts import Example
from ml.models import UNKNOWN
from ml.provenance import all_marks_of, in_scan_order, numbered, scan_key, seen_among

PREDICTIONS = ("filename", "label", "patient", "slice", "probability")
KEEP_EVERY_S = 5.0
SEED = 0


@dataclass(frozen=True)
class Level:
    """Answers at one level with known and unknown labels; `seen` where training has seen the image or one of its group."""

    labels: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    groups: np.ndarray
    seen: np.ndarray

    def metrics(self, with_seen: bool) -> dict[str, dict[str, Any]]:
        """Return the figures of what has a label; without what training has seen unless `with_seen`."""
        known = self.labels != UNKNOWN
        counted = known if with_seen else known & ~self.seen
        if known.any() and not counted.any():
            return undefined_metrics("the model's training has seen all of it")
        at = np.flatnonzero(counted)
        return metrics_with_intervals(self.labels[at], self.probabilities[at], self.predicted[at], self.groups[at], SEED)


def evaluate(
    model_dir: Path,
    dataset: Dataset,
    out_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 1,
) -> dict[str, Any]:
    """Score a data set and write `metrics.json`, `predictions.csv` and `answers.csv` (see `ml.answers`); return the first.

    One patient after the other is read and answered for as a series, in the order of its slices; an image without a patient is a series of
    one. Interrupted and called again it continues.

    Args:
        model_dir: the model.
        dataset: of any labels, one class or none included.
        out_dir: a folder for the results, new or of the same evaluation.
        on_progress: told (images scored, images in all).
        threads: that the model may use.

    Raises:
        ArtifactError: the model is unusable.
        SettingError: the folder holds another evaluation.
    """
    predictor = Predictor(model_dir, threads, judges_pictures=False)  # a data set's pictures are what its owner says
    examples = in_scan_order(dataset.examples)
    scans = numbered([scan_key(example) for example in examples])
    identity = digest(predictor.card.id, dataset.fingerprint)
    began = time.monotonic()
    findings = _score(predictor, examples, scans, out_dir, identity, on_progress)
    marks, notes = _marks(model_dir)
    seen_images = seen_among(examples, marks)
    groups = np.array([example.group for example in examples])
    seen = np.isin(groups, groups[seen_images])
    slices, patients = _levels(predictor, examples, scans, findings, groups, seen)
    card = predictor.card
    if overlap := int(seen_images.sum()):
        notes.append(
            f"The model's training has seen {overlap} of the {len(examples)} images; they and the other slices of their groups, "
            f"{int(seen.sum())} in all, are left out of the figures under slice and patient."
        )
    without = sum(example.patient is None for example in examples)
    if without:
        which = "No image names its patient" if without == len(examples) else f"{without} images name no patient"
        notes.append(f"{which}; each is a scan of its own among the patients.")
    unknown = int((slices.labels == UNKNOWN).sum())
    if unknown:
        notes.append(f"{unknown} images have no label: they are scored with their patient and left out of the slice figures.")
    counted = patients.labels != UNKNOWN
    several = np.bincount(scans) > 1
    points = [card.point_of(2 if more else 1) for more in several]
    zone = np.array([int(zones(p, low, high)) for p, (_, low, high) in zip(patients.probabilities, points, strict=True)])
    slice_zone = zones(slices.probabilities, card.uncertain_low, card.uncertain_high)
    known, fresh = slices.labels != UNKNOWN, ~slices.seen
    result: dict[str, Any] = {
        "identity": identity,
        "model": {"id": card.id, "architecture": card.architecture, "reads": card.reads},
        "threshold": card.threshold,
        "patient_threshold": card.point_of(2)[0],
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": len(examples),
        "scans": len(several),
        "unknown": unknown,
        "slice": slices.metrics(with_seen=False),
        "patient": patients.metrics(with_seen=False),
        "overlap": overlap,
        "left_out": int(seen.sum()),
        "all": {"slice": slices.metrics(with_seen=True), "patient": patients.metrics(with_seen=True)},
        "band": {
            "slice": trust_in_zones(slices.labels[known & fresh], slice_zone[known & fresh]),
            "patient": trust_in_zones(patients.labels[counted & ~patients.seen], zone[counted & ~patients.seen]),
        },
        "notes": notes,
        "problems": list(dataset.problems),
        "seconds": round(time.monotonic() - began, 1),
    }
    _write_predictions(out_dir / "predictions.csv", examples, slices.probabilities)
    write_answers(out_dir / "answers.csv", _rows(examples, scans, slices, patients))
    save_json(out_dir / "metrics.json", result)
    (out_dir / "partial.json").unlink(missing_ok=True)
    return result


def _score(
    predictor: Predictor,
    examples: Sequence[Example],
    scans: np.ndarray,
    out_dir: Path,
    identity: str,
    on_progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Return the answer for each scan; what is there already is not computed again."""
    partial = out_dir / "partial.json"
    kept = load_json(partial) or {"identity": identity, "findings": []}
    owner = load_json(out_dir / "metrics.json") or kept
    if kept["identity"] != identity or owner.get("identity") != identity:
        raise SettingError(f"The folder {out_dir.name} holds the evaluation of another model or data set; give another folder.")
    findings: list[dict[str, Any]] = kept["findings"]
    starts = [*np.unique(scans, return_index=True)[1].tolist(), len(examples)]
    saved_at = time.monotonic()
    try:
        for scan in range(len(findings), len(starts) - 1):
            on_progress(starts[scan], len(examples))
            findings.append(_answer(predictor, examples[starts[scan] : starts[scan + 1]]))
            if time.monotonic() - saved_at > KEEP_EVERY_S:
                save_json(partial, {"identity": identity, "findings": findings})
                saved_at = time.monotonic()
    finally:
        # Also when Ctrl-C arrives in the middle of a scan: the list holds whole scans only.
        save_json(partial, {"identity": identity, "findings": findings})
    on_progress(len(examples), len(examples))
    return findings


def _answer(predictor: Predictor, examples: Sequence[Example]) -> dict[str, Any]:
    try:
        read = [read_series([example.path]) for example in examples]
    except ImageError as err:
        raise ImageError(f"{examples[0].name} and the slices after it: {err}") from err
    finding: Finding = predictor.predict(Series(tuple(series.slices[0] for series in read)))
    return {"probability": finding.probability, "positive": finding.positive, "slices": list(finding.slice_probabilities)}


def _marks(model_dir: Path) -> tuple[Any, list[str]]:
    try:
        return all_marks_of(model_dir), []
    except ArtifactError as err:
        return (), [str(err)]


def _levels(
    predictor: Predictor,
    examples: Sequence[Example],
    scans: np.ndarray,
    findings: Sequence[dict[str, Any]],
    groups: np.ndarray,
    seen: np.ndarray,
) -> tuple[Level, Level]:
    labels = np.array([UNKNOWN if example.label is None else example.label for example in examples])
    probabilities = np.array([value for finding in findings for value in finding["slices"]])
    first = np.unique(scans, return_index=True)[1]
    scan_labels = np.full(len(findings), UNKNOWN)
    np.maximum.at(scan_labels, scans, labels)
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


def _write_predictions(path: Path, examples: Sequence[Example], probabilities: np.ndarray) -> None:
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(PREDICTIONS)
        for example, probability in zip(examples, probabilities, strict=True):
            row = [example.name, example.label, example.patient, example.slice, float(probability)]
            table.writerow(["" if value is None else value for value in row])
    unfinished.replace(path)


def _rows(examples: Sequence[Example], scans: np.ndarray, slices: Level, patients: Level) -> list[dict[str, Any]]:
    rows = []
    first = np.unique(scans, return_index=True)[1]
    for name, level, positions in (("slice", slices, np.arange(len(examples))), ("patient", patients, first)):
        for number, position in enumerate(positions):
            example = examples[position]
            whole = name == "patient" and example.patient
            rows.append(
                {
                    "level": name,
                    "dataset": example.dataset,
                    "filename": "" if whole else example.name,
                    "label": "" if level.labels[number] == UNKNOWN else int(level.labels[number]),
                    "patient": example.patient or "",
                    "slice": "" if whole or example.slice is None else example.slice,
                    "group": level.groups[number],
                    "probability": repr(float(level.probabilities[number])),
                    "predicted": int(level.predicted[number]),
                    "overlap": int(level.seen[number]),
                }
            )
    return rows
