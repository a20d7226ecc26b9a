"""Result tables docs/results/<data set>.csv, with a row per metric of finished trainings,
evaluations and the paper's experiment.

    python -m ml results RUN=PROTOCOL ... --out docs/results

RUN is an output folder of `train` or `evaluate`, or a model folder; PROTOCOL is a short description
such as "5-fold by patient". Rows with the same architecture, restructuring, augmentation, protocol,
level and metric are replaced.

    restructured   yes or no: an autoencoder precedes the convolutions
    augmentation   number of copies of each training image; empty if each draw is augmented anew
    level          slice, or patient for scans of several slices
    low, high, n   95% interval and denominator
    epochs         of the network; 0 if only the head was trained
    seconds        duration of the fits
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml.artifacts.card import CARD, Card, Control
from ml.artifacts.folder import read_card
from ml.checkpoints import save_text
from ml.errors import ArtifactError
from ml.evaluation.results import METRICS, Evaluation, read_evaluation
from ml.figures import Estimate, Metrics

KEY = ("architecture", "restructured", "augmentation", "protocol", "level", "metric")
COLUMNS = (*KEY, "value", "low", "high", "n", "folds", "repeats", "epochs", "seconds")
DIGITS = 4
Row = dict[str, str]


def rows_of(
    facts: Mapping[str, Any], level: str, figures: Iterable[tuple[str, Estimate]]
) -> list[Row]:
    """Return a row for each metric of one level.

    Args:
        facts: architecture, restructured, augmentation, protocol, and folds, repeats, epochs,
            seconds where they are known.
        level: "slice" or "patient".
        figures: (name, figure) of each; an undefined one has an empty value.
    """
    shared = {name: _text(facts.get(name)) for name in COLUMNS}
    return [
        shared
        | {"level": level, "metric": metric}
        | {name: _text(getattr(figure, name)) for name in ("value", "low", "high", "n")}
        for metric, figure in figures
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
                f"{path.name} is not a table of results; its columns must be {','.join(COLUMNS)}."
            )
        return list(table)


def rows_of_run(run: Path, protocol: str) -> dict[str, list[Row]]:
    """Return the rows of a finished training, a model or an evaluation, by data set.

    Raises:
        ArtifactError: the folder is none of these, or its model is unusable.
    """
    for folder in (run / "model", run):
        if (folder / CARD).is_file():
            return _rows_of_card(read_card(folder), protocol)
    if (run / METRICS).is_file():
        return _rows_of_evaluation(read_evaluation(run), protocol)
    raise ArtifactError(
        f"{run} holds neither a model nor {METRICS}; give a folder that train or evaluate wrote."
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
        facts |= {"folds": len(card.data.datasets), "repeats": 1}
    else:
        facts |= {name: card.settings.get(name) for name in ("folds", "repeats")}
    slices, patients = card.metrics_by_dataset, card.patient_metrics_by_dataset
    over = "" if len(slices) == 1 else f" over {' + '.join(slices)}"
    controls = [
        row for control in card.controls for row in _rows_of_control(control, facts, protocol, over)
    ]
    return {
        name: _rows_of_levels(facts, slices.get(name), patients.get(name)) + controls
        for name in dict.fromkeys([*slices, *patients])
    }


def _rows_of_control(
    control: Control, facts: Mapping[str, Any], protocol: str, over: str
) -> list[Row]:
    """Return the rows of a control, none if it was skipped; `over` names the pooled data sets, if
    there are several.
    """
    figures = (("auroc", control.auroc), ("accuracy", control.accuracy))
    control_facts = {
        "protocol": f"{protocol}; control {control.name.replace('_', ' ')}{over}",
        "seconds": round(control.seconds),
    }
    known = [(name, figure) for name, figure in figures if figure is not None]
    return rows_of({**facts, **control_facts}, "slice", known)


def _rows_of_evaluation(evaluation: Evaluation, protocol: str) -> dict[str, list[Row]]:
    facts = _facts(evaluation.model.architecture, evaluation.model.settings)
    facts |= {"protocol": protocol, "seconds": round(evaluation.seconds)}
    return {evaluation.dataset: _rows_of_levels(facts, evaluation.slice, evaluation.patient)}


def _facts(architecture: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    restructured = architecture == "autoencoder" or settings.get("restructure", "none") != "none"
    return {
        "architecture": architecture,
        "restructured": "yes" if restructured else "no",
        "augmentation": settings.get("augmentation"),
        "epochs": network_epochs(settings) if settings else None,
    }


def _rows_of_levels(
    facts: Mapping[str, Any], slices: Metrics | None, patients: Metrics | None
) -> list[Row]:
    """Return the rows of slices and of patients; no patient rows if every patient has one slice,
    since they would equal those of the slices.
    """
    rows = rows_of(facts, "slice", slices.items()) if slices else []
    if patients and (slices is None or patients.accuracy.n != slices.accuracy.n):
        rows += rows_of(facts, "patient", patients.items())
    return rows


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
