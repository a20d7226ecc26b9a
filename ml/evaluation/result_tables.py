"""Result tables docs/results/<data set>.csv, with a row per metric of finished trainings,
evaluations and the paper's experiment.

    python -m ml results RUN=PROTOCOL ... --out docs/results

RUN is an output folder of `train` or `evaluate`, or a model folder; PROTOCOL is a short description
such as "5-fold by patient". Rows with the same architecture, restructuring, augmentation, protocol,
level and metric are replaced.

    restructured   yes or no: an autoencoder precedes the convolutions
    augmentation   number of copies of each training image; empty if each draw is augmented anew
    level          slice, or patient for scans of several slices
    low, high, n   95 % interval and denominator
    epochs         of the network; 0 if only the head was trained
    seconds        duration of the fits
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.artifacts.card import CARD, Card
from ml.artifacts.folder import read_card
from ml.checkpoints import save_text
from ml.errors import ArtifactError

KEY = ("architecture", "restructured", "augmentation", "protocol", "level", "metric")
COLUMNS = (*KEY, "value", "low", "high", "n", "folds", "repeats", "epochs", "seconds")
DIGITS = 4
Row = dict[str, str]


def rows_of(
    facts: Mapping[str, Any], level: str, metrics: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Return a row for each metric of one level.

    Args:
        facts: architecture, restructured, augmentation, protocol, and folds, repeats, epochs,
            seconds where they are known.
        level: "slice" or "patient".
        metrics: as `ml.evaluation.metrics.metrics_with_intervals` makes them; an undefined figure
            has an empty value.
    """
    shared = {name: _text(facts.get(name)) for name in COLUMNS}
    return [
        shared
        | {"level": level, "metric": metric}
        | {name: _text(entry[name]) for name in ("value", "low", "high", "n")}
        for metric, entry in metrics.items()
    ]


def update_results(path: Path, rows: Iterable[Row]) -> None:
    """Insert rows into a sorted table atomically, replacing those with the same key.

    Raises:
        ArtifactError: the file is another kind of table.
    """
    merged = {tuple(row[name] for name in KEY): row for row in [*read_results(path), *rows]}
    written = io.StringIO(newline="")
    table = csv.DictWriter(written, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(merged[key] for key in sorted(merged, key=_place))
    save_text(path, written.getvalue())


def read_results(path: Path) -> list[Row]:
    """Return the rows of a table, none if there is no file.

    Raises:
        ArtifactError: the file is another kind of table.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ArtifactError(
                f"{path.name} is no table of results; its columns must be {','.join(COLUMNS)}."
            )
        return list(table)


def rows_of_run(run: Path, protocol: str) -> dict[str, list[Row]]:
    """Return the rows of a finished training, a model or an evaluation, by data set.

    Raises:
        ArtifactError: the folder is none of them, or its model is unusable.
    """
    for folder in (run / "model", run):
        if (folder / CARD).is_file():
            return _rows_of_card(read_card(folder), protocol)
    if (run / "metrics.json").is_file():
        return _rows_of_evaluation(
            json.loads((run / "metrics.json").read_text(encoding="utf-8")), protocol
        )
    raise ArtifactError(
        f"{run} holds neither a model nor metrics.json; give a folder that train or evaluate wrote."
    )


def network_epochs(settings: Mapping[str, Any]) -> int:
    """Return the number of training epochs of a run's network, 0 if only a head on frozen features
    was trained.
    """
    return int(settings.get("epochs") or settings.get("fine_tune_epochs") or 0)


def _rows_of_card(card: Card, protocol: str) -> dict[str, list[Row]]:
    facts = _facts(card.architecture, card.settings) | {
        "protocol": protocol,
        "seconds": round(card.seconds),
    }
    if card.settings.get("folds_by") == "data set":
        facts |= {"folds": len(card.data["datasets"]), "repeats": 1}
    else:
        facts |= {name: card.settings.get(name) for name in ("folds", "repeats")}
    rows = {}
    only_patients: dict[str, Any] = {
        name: {} for name in card.patient_metrics_by_dataset if name not in card.metrics_by_dataset
    }
    for name, slices in (card.metrics_by_dataset | only_patients).items():
        rows[name] = rows_of(facts, "slice", slices) + _of_patients(
            facts, slices, card.patient_metrics_by_dataset.get(name, {})
        )
        over = (
            ""
            if len(card.metrics_by_dataset) == 1
            else f" over {' + '.join(card.metrics_by_dataset)}"
        )
        for control in card.controls:
            if "skipped" not in control:
                found: dict[str, Any] = {
                    metric: control[metric] for metric in ("auroc", "accuracy") if metric in control
                }
                of_control = {
                    "protocol": f"{protocol}; control {control['name'].replace('_', ' ')}{over}",
                    "seconds": round(control["seconds"]),
                }
                rows[name] += rows_of(facts | of_control, "slice", found)
    return rows


def _rows_of_evaluation(found: Mapping[str, Any], protocol: str) -> dict[str, list[Row]]:
    facts = _facts(found["model"]["architecture"], found["model"].get("settings", {}))
    facts |= {"protocol": protocol, "seconds": round(found["seconds"])}
    return {
        found["dataset"]: rows_of(facts, "slice", found["slice"])
        + _of_patients(facts, found["slice"], found["patient"])
    }


def _facts(architecture: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    restructured = architecture == "autoencoder" or settings.get("restructure", "none") != "none"
    return {
        "architecture": architecture,
        "restructured": "yes" if restructured else "no",
        "augmentation": settings.get("augmentation"),
        "epochs": network_epochs(settings) if settings else None,
    }


def _of_patients(
    facts: Mapping[str, Any], slices: Mapping[str, Any], patients: Mapping[str, Any]
) -> list[Row]:
    """Return the rows of patients, none if each has a single slice, since they would equal those of
    slices.
    """
    same = not patients or (bool(slices) and patients["accuracy"]["n"] == slices["accuracy"]["n"])
    return [] if same else rows_of(facts, "patient", patients)


def _text(value: object) -> str:
    return (
        ""
        if value is None
        else str(round(value, DIGITS))
        if isinstance(value, float)
        else str(value)
    )


def _place(key: Sequence[str]) -> tuple[str, str, int, str, str, str]:
    """Return the sort key of a row: slices before patients, and 2 copies before 10."""
    architecture, restructured, augmentation, protocol, level, metric = key
    return (
        architecture,
        restructured,
        int(augmentation or 0),
        protocol,
        "" if level == "slice" else level,
        metric,
    )
