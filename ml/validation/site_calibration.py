"""A model folder calibrated to one site: the shipped graphs with a calibration that is fitted to
the site's confirmed scans (`ml.evaluation.local_calibration`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ml.artifacts.card import HEAD, SEEN, Card, LocalCalibration, LocalLevel
from ml.artifacts.folder import read_card, write_model
from ml.datasets.read import Dataset
from ml.datasets.seen_images import all_marks_of, seen_json
from ml.errors import ArtifactError
from ml.evaluation.answers import Key, read_answers
from ml.evaluation.calibration import Platt
from ml.evaluation.local_calibration import (
    LocalScans,
    before_and_after,
    fit_local,
    local_points,
    simulate,
)
from ml.figures import PointFigures
from ml.named_points import require_sound
from ml.networks.onnx_graph import serialized
from ml.typed_json import to_json
from ml.validation.external import evaluate

CONSTANTS = {"slice": ("slope", "offset"), "scan": ("scan_slope", "scan_offset")}
"""The constants of a head's graph that hold its two calibrations."""
SIZES = (20, 50, 100)


def calibrate(
    model_dir: Path,
    dataset: Dataset,
    out_dir: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int = 1,
) -> dict[str, LocalLevel]:
    """Calibrate a model to a site: `out_dir/model` is the new model folder, `out_dir/evaluation`
    holds the original model's answers. Single images calibrate the answers for slices, series those
    for scans.

    Args:
        model_dir: the model.
        dataset: labeled scans of the site; those seen in training do not count.
        out_dir: a new folder, or one of an interrupted calibration.
        on_progress: called with (images predicted, number of images).
        threads: number of threads of the model.

    Returns:
        Each calibrated level, "slice" or "scan"; its metrics are cross-validated
            (`ml.evaluation.local_calibration.before_and_after`).
        (`ml.evaluation.local_calibration.before_and_after`).

    Raises:
        ArtifactError: the model is unusable, or its graph holds no calibration.
        DatasetError: there are too few scans, or of one class only.
        SettingError: the folder holds something else.
    """
    card = read_card(model_dir)
    evaluate(model_dir, dataset, out_dir / "evaluation", on_progress, threads)
    levels = _local_scans(out_dir / "evaluation", dataset)
    usable = {name: scans for name, scans in levels.items() if scans.lacks is None}
    if not usable:
        max(levels.values(), key=lambda scans: len(scans.labels)).require_enough()
    thresholds = {"slice": card.operating_point(1)[0], "scan": card.operating_point(2)[0]}
    fitted = {name: fit_local(scans) for name, scans in usable.items()}
    result = {}
    for name, scans in usable.items():
        before, after = before_and_after(scans, thresholds[name])
        result[name] = LocalLevel(
            scans=len(scans.labels), platt=asdict(fitted[name]), before=before, after=after
        )
    points = _points(card, {name: local_points(scans) for name, scans in usable.items()})
    write_model(
        out_dir / "model",
        replace(_local_card(card, dataset, result), points=points),
        _files(model_dir, dataset, fitted),
    )
    return result


def simulate_sites(run: Path) -> list[dict[str, Any]]:
    """Return the effect that local calibration would have at each data set of a training run whose
    folds are data sets: a row for each data set and each of `SIZES`, see
    `ml.evaluation.local_calibration.simulate`.

    Data sets without scans of both classes are left out, and so are sizes that would leave too few
    scans.

    Raises:
        AnswersError: the folder holds no answers.
        ArtifactError: it holds no model.
    """
    card = read_card(run / "model")
    if card.settings.get("folds_by") != "data set":
        raise ArtifactError(
            f"{run.name} was not cross-validated by data set: train with --set 'folds_by=data set'."
        )
    answers = read_answers(run)
    slices_of = Counter(_scan(key) for key in answers["slice"])
    sites: dict[str, list[tuple[int, float, str, int]]] = {}
    for key, answer in answers["patient"].items():
        sites.setdefault(key[0], []).append(
            (answer.label, answer.probabilities[0], answer.group, slices_of[_scan(key)])
        )
    rows = []
    for name, scans_of_site in sites.items():
        labels, probabilities, groups, sizes = (
            np.array(column) for column in zip(*scans_of_site, strict=True)
        )
        scans = LocalScans(labels, probabilities, groups)
        # A few patients with two images do not make a data set of series.
        threshold = card.operating_point(int(np.median(sizes)))[0]
        rows += [
            {"site": name, "size": size, **simulate(scans, threshold, size)}
            for size in SIZES
            if scans.can_spare(size)
        ]
    return rows


def _scan(key: Key) -> tuple[str, str]:
    """Return the data set and the name of the scan of an answer: its patient, or the file of an
    image without one.
    """
    dataset, patient, filename = key
    return dataset, patient or filename


def _local_scans(evaluation: Path, dataset: Dataset) -> dict[str, LocalScans]:
    """Return the answers for labeled scans that were not seen in training: single images under
    "slice", series under "scan".
    """
    sizes = Counter(
        example.scan_name if example.patient else example.name for example in dataset.examples
    )
    levels: dict[str, list[tuple[int, float, str]]] = {"slice": [], "scan": []}
    for key, answer in read_answers(evaluation)["patient"].items():
        levels["scan" if sizes[_scan(key)[1]] > 1 else "slice"].append(
            (answer.label, answer.probabilities[0], answer.group)
        )
    return {
        level: LocalScans(
            np.array([label for label, _, _ in rows], int),
            np.array([probability for _, probability, _ in rows], float),
            np.array([group for _, _, group in rows], str),
        )
        for level, rows in levels.items()
    }


def _points(
    card: Card, local: dict[str, dict[str, PointFigures]]
) -> dict[str, dict[str, PointFigures]]:
    """Return the named operating points of the calibrated model: for each level the local ones, or
    those of the original model if the level was not calibrated; empty if those are missing, or if
    the points contradict each other because there are so few scans.
    """
    points = {
        key: local.get(name) or card.points.get(key, {})
        for name, key in (("slice", "slice"), ("scan", "patient"))
    }
    if not all(points.values()):
        return {}
    try:
        require_sound(to_json(points))
    except ArtifactError:
        return {}
    return points


def _local_card(card: Card, dataset: Dataset, result: dict[str, LocalLevel]) -> Card:
    counts = " and ".join(
        f"{figures.scans} {'series' if name == 'scan' else 'single images'}"
        for name, figures in result.items()
    )
    return replace(
        card,
        curves={},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        data=replace(
            card.data,
            local_calibration=LocalCalibration(
                model=card.id,
                dataset=dataset.name,
                slice=result.get("slice"),
                scan=result.get("scan"),
            ),
        ),
        notes=[
            *card.notes,
            f"Calibrated to {counts} of {dataset.name}. Except for this calibration and the named"
            f" operating points, all metrics are those of the original model {card.id}.",
        ],
    )


def _files(model_dir: Path, dataset: Dataset, fitted: dict[str, Platt]) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {
        path.name: path
        for path in model_dir.iterdir()
        if path.suffix in (".onnx", ".json") and path.name != "card.json"
    }
    head = onnx.load(str(model_dir / HEAD))
    constants = {constant.name: constant for constant in head.graph.initializer}
    for level, platt in fitted.items():
        if not set(CONSTANTS[level]) <= constants.keys():
            raise ArtifactError("The model's head has no calibration that could be changed.")
        slope, offset = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in CONSTANTS[level]
        )
        composed = platt.slope * slope, platt.slope * offset + platt.offset
        for name, value in zip(CONSTANTS[level], composed, strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    files[HEAD] = serialized(head)
    if SEEN in files:
        labeled = [example for example in dataset.examples if example.label is not None]
        files[SEEN] = seen_json(labeled, all_marks_of(model_dir), False)
    return files
