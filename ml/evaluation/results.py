"""The results of evaluating a model on a labeled data set: metrics.json, as dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.errors import ArtifactError
from ml.figures import BandFigures, Metrics, StateCounts
from ml.typed_json import JsonError, from_json

METRICS = "metrics.json"


@dataclass(frozen=True)
class EvaluatedModel:
    """Which model was evaluated, according to its card."""

    id: str
    architecture: str
    reads: str
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GateFigures:
    """Scores of the images in the check "not a head CT".

    Attributes:
        refused: number of images that the service would refuse.
        refused_from: the score from which it refuses an image.
        n: number of images checked.
        share: the share of them that would be refused.
        median, highest: of the scores.
        reason: why no image was checked; then all fields but `n` are None.
    """

    refused: int | None
    refused_from: float | None = None
    n: int
    share: float | None
    median: float | None
    highest: float | None
    reason: str | None = None


@dataclass(frozen=True)
class BothLevels:
    """Metrics of slices and of patients."""

    slice: Metrics
    patient: Metrics


@dataclass(frozen=True, kw_only=True)
class StatesByLabel:
    """The states of the verdicts on scans with, without, and with unknown hemorrhage."""

    with_hemorrhage: StateCounts
    without: StateCounts
    unlabeled: StateCounts


@dataclass(frozen=True)
class States:
    """The states of the verdicts on slices and on patients."""

    slice: StatesByLabel
    patient: StatesByLabel


@dataclass(frozen=True)
class Bands:
    """How often answers outside the inconclusive band are correct, by slice and by patient."""

    slice: BandFigures
    patient: BandFigures


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's results on an external data set.

    Attributes:
        identity: digest of model and data set.
        model: which one.
        threshold, patient_threshold: for a slice, and for a scan of several slices.
        dataset, fingerprint: of the data set.
        images, scans: numbers of images and scans that were predicted.
        unknown: number of images without a label.
        unread: number of unreadable images.
        not_head_ct: results of the check "not a head CT".
        slice, patient: metrics, excluding data seen in the model's training.
        overlap: number of images seen in training.
        left_out: number of these images and all others of their groups.
        all: metrics including the data seen in training.
        band: predictive values outside the inconclusive band, excluding data seen in training.
        states: numbers of verdicts that are suspected, inconclusive and not found, excluding data
            seen in training; None in files that were written before these were counted.
        notes, problems: sentences about the evaluation and about the data set.
        seconds: its duration.
    """

    identity: str
    model: EvaluatedModel
    threshold: float
    patient_threshold: float
    dataset: str
    fingerprint: str
    images: int
    scans: int
    unknown: int
    unread: int
    not_head_ct: GateFigures
    slice: Metrics
    patient: Metrics
    overlap: int
    left_out: int
    all: BothLevels
    band: Bands
    notes: list[str]
    problems: list[str]
    seconds: float
    states: States | None = None


def read_evaluation(run: Path) -> Evaluation:
    """Return what `evaluate` wrote to a folder.

    Raises:
        ArtifactError: metrics.json is not what it writes.
    """
    try:
        return from_json(Evaluation, json.loads((run / METRICS).read_text(encoding="utf-8")))
    except JsonError as err:
        raise ArtifactError(f"{run / METRICS} {err}.") from err
    except ValueError as err:
        raise ArtifactError(f"{run / METRICS} is not JSON.") from err
