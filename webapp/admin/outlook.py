"""The outlook of a training run, shown before its launch: what the data allow, which initial
weights would be replaced, and how long it will take here.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.catalogue import (
    ARCHITECTURES,
    STARTER_DIR,
    STARTER_SERIES_DIR,
    Architecture,
    presets_of,
)
from ml.expected_fits import READING, learns_features
from ml.expected_time import expected_parts, expected_s
from webapp.display import display_name
from webapp.extensions import db
from webapp.models import Dataset, ModelVersion, TrainingRun

EARLIER_RUNS = 5
"""The number of recent runs from which this installation's speed is estimated."""
STARTERS = {"starter": STARTER_DIR, "starter-series": STARTER_SERIES_DIR}


@dataclass(frozen=True)
class Speed:
    """How many seconds an expected second (`ml.expected_time`) takes on this machine, and the
    source of that figure.
    """

    slowness: float
    source: str


@dataclass(frozen=True)
class Outlook:
    """What a run would do.

    Attributes:
        images: of the chosen data sets; None if none is chosen.
        seconds: how long it would take.
        presets: the same for the settings of each preset, by its name.
        speed: the basis of these estimates.
        refused: sentences that say why it cannot run.
        overruled: sentences that say what would differ from the request.
    """

    images: int | None
    seconds: float | None
    presets: Mapping[str, float]
    speed: Speed
    refused: Sequence[str]
    overruled: Sequence[str]

    @property
    def mark(self) -> str:
        """A short hash of the warnings; a form that contains it has displayed them."""
        return hashlib.sha256("\n".join(self.overruled).encode()).hexdigest()[:16]

    def has_news_for(self, warnings_shown: str | None) -> bool:
        """Return whether a form with this mark has not displayed these warnings."""
        return bool(self.overruled) and warnings_shown != self.mark


def outlook_of(
    architecture: Architecture,
    settings: Mapping[str, Any],
    initial_weights: str,
    datasets: Sequence[Dataset],
) -> Outlook:
    """Return the outlook of a run with these settings, which are valid and complete."""
    speed = speed_here(architecture.name)
    images, positives, patients = (
        sum((dataset.exploration or {}).get(key) or 0 for dataset in datasets)
        for key in ("images", "positive", "patients")
    )

    def seconds_of(settings: Mapping[str, Any]) -> float:
        is_random = initial_weights == "random"
        parts = expected_parts(
            architecture.name,
            settings,
            images,
            len(datasets),
            starts_random=is_random,
            positives=positives,
            # Most patients have one scan.
            scans=patients if 0 < patients < images else None,
        )
        return expected_s(parts) * speed.slowness

    presets = {
        preset.name: seconds_of(architecture.parse_settings(preset.settings))
        for preset in presets_of(architecture)
    }
    return Outlook(
        images=images or None,
        seconds=seconds_of(settings) if images else None,
        presets=presets if images else {},
        speed=speed,
        refused=list(_refused(settings, datasets)) if datasets else [],
        overruled=list(_overruled(architecture, settings, initial_weights, datasets)),
    )


def speed_here(architecture: str) -> Speed:
    """Return the speed of earlier runs of this architecture or, if there are none, of others."""
    rows = db.session.execute(
        select(ModelVersion.architecture, ModelVersion.card)
        .join(ModelVersion.run)
        .where(TrainingRun.is_calibration.is_(False))
        .order_by(ModelVersion.architecture != architecture, ModelVersion.created_at.desc())
        .limit(EARLIER_RUNS)
    ).all()
    slownesses = [
        (row.architecture, slowness)
        for row in rows
        if (slowness := _slowness(row.card)) is not None
    ]
    of_architecture = [slowness for name, slowness in slownesses if name == architecture]
    measured = of_architecture or [slowness for _, slowness in slownesses]
    if not measured:
        return Speed(1.0, "a rough default for two cores because no run has finished here yet")
    runs = "1 earlier run" if len(measured) == 1 else f"{len(measured)} earlier runs"
    which = f"of {display_name(architecture)}" if of_architecture else "of other architectures"
    return Speed(statistics.median(measured), f"measured in {runs} {which} here")


def _slowness(card: Mapping[str, Any]) -> float | None:
    """Return how many seconds an expected second of a finished run took; the seconds on the card
    include fits and controls only.
    """
    seconds, settings = card.get("seconds"), card.get("settings") or {}
    images = (card.get("data") or {}).get("images")
    if not seconds or not images or card.get("architecture") not in ARCHITECTURES:
        return None
    parts = expected_parts(card["architecture"], settings, images, len(card["data"]["datasets"]))
    expected = sum(part.seconds for part in parts if part.name != READING)
    return float(seconds) / expected


def what_a_data_set_allows(exploration: Mapping[str, Any] | None) -> str:
    """Return a sentence on what a data set with unusual labels can be used for; empty for other
    data sets.
    """
    if not exploration:
        return ""
    positive, negative = exploration["positive"], exploration["negative"]
    wholes = (exploration.get("scan_labels") or {}).get("as_wholes", 0)
    if not positive and not negative:
        return (
            "This data set has only scan-level labels. It cannot be trained on alone because no"
            " slice could be tested. Together with a data set with labeled slices, the LSTM and GRU"
            " learn from its scans, and other architectures use them to calibrate the scan-level"
            " probability. It can be used for evaluation by patient."
        )
    if not positive or not negative:
        own, missing = ("with", "without") if positive else ("without", "with")
        figure = "sensitivity" if positive else "specificity"
        return (
            f"This data set has only images {own} hemorrhage, so it cannot be trained on alone. Add"
            f" a data set with images {missing}. Evaluating on it gives the {figure} but no AUROC."
        )
    if wholes:
        return (
            f"{wholes} scans have only scan-level labels. Their slices are excluded from figures by"
            " slice, and only the LSTM and GRU learn from them."
        )
    return ""


def _refused(settings: Mapping[str, Any], datasets: Sequence[Dataset]) -> Iterator[str]:
    """Yield the reasons why no model can be trained on these data."""
    if settings.get("folds_by") == "data set" and len(datasets) < 2:
        yield "Folds by data set need at least two data sets."
    explored = [dataset.exploration or {} for dataset in datasets]
    if not all("positive" in counts for counts in explored):
        return  # Imported by an earlier version, which did not count groups.
    for label, noun in (("positive", "with"), ("negative", "without")):
        if not sum(counts[label] for counts in explored):
            yield (
                f"The chosen data have no labeled images {noun} hemorrhage. Add a data set that has"
                " some."
            )
            return
    folds = _folds(settings, datasets)
    for label, noun in (("positive", "hemorrhage"), ("negative", "no hemorrhage")):
        groups = _groups(datasets, "", label)
        if groups is not None and groups < 2 * folds:
            yield (
                f"Only {groups} groups (patients) have {noun}; {folds} folds need at least"
                f" {2 * folds}. Choose fewer folds or add a data set."
            )


def _overruled(
    architecture: Architecture,
    settings: Mapping[str, Any],
    initial_weights: str,
    datasets: Sequence[Dataset],
) -> Iterator[str]:
    """Yield what would differ from the request."""
    if not datasets or architecture.encoder is None:
        return
    kind, _, version_id = initial_weights.partition(":")
    if kind in STARTERS:
        yield from _starter_overruled(kind, architecture, settings, datasets)
    elif kind == "version":
        seen = _seen_by(version_id)
        both = sorted(dataset.name for dataset in datasets if dataset.id in seen)
        if both:
            yield (
                f"That version was trained on {', '.join(both)}, so these patients are used"
                " only for"
                " training and excluded from all figures. If no other data of both classes are"
                " left, the run will fail."
            )


def _starter_overruled(
    kind: str,
    architecture: Architecture,
    settings: Mapping[str, Any],
    datasets: Sequence[Dataset],
) -> Iterator[str]:
    # "starter" selects a shipped model that has seen few enough of the images.
    folders = STARTERS.values() if kind == "starter" else (STARTERS[kind],)
    needed = 2 * _folds(settings, datasets)
    names = " and ".join(dataset.name for dataset in datasets)
    is_unknown = False
    for folder in folders:
        card = _card_in(folder)
        if not card or _encoder_of(card["architecture"]) != architecture.encoder:
            continue
        left = [_groups(datasets, card["id"], label) for label in ("positive", "negative")]
        if None in left:
            is_unknown = True
        elif min(count for count in left if count is not None) >= needed:
            yield from _partly_seen(card["id"], datasets)
            return
    if is_unknown:
        yield (
            f"It is unknown whether the starter model was trained on {names} because an earlier"
            " version imported them. If it was, training would begin from random weights."
        )
    elif kind == "starter":
        yield (
            f"The starter model was trained on {names}, so training would begin from random"
            " weights. ImageNet weights, if available, would be better."
        )
    else:
        yield (
            f"The starter model for series was trained on {names}, so too few patients are left"
            " for testing, and the run would fail. Choose other weights."
        )


def _partly_seen(card_id: str, datasets: Sequence[Dataset]) -> Iterator[str]:
    seen = 0
    for label in ("positive", "negative"):
        seen += (_groups(datasets, "", label) or 0) - (_groups(datasets, card_id, label) or 0)
    if seen > 0:
        yield (
            f"The starter model was trained on {seen} groups (patients) of these data. They are"
            " used only for training and excluded from all figures."
        )


def _groups(datasets: Sequence[Dataset], card_id: str, label: str) -> int | None:
    """Return the number of groups of a class that the model with this id has not seen (all groups
    for ""); None if that was not counted. If data sets share patients, the true number is lower.
    """
    counted = 0
    for dataset in datasets:
        explored = dataset.exploration or {}
        if "unseen_groups" not in explored:
            return None
        of_model = explored["unseen_groups"]
        if of_model and card_id not in of_model:
            return None  # Another model was shipped when it was imported.
        counted += of_model[card_id][label] if of_model else 0
    return counted


def _folds(settings: Mapping[str, Any], datasets: Sequence[Dataset]) -> int:
    if settings.get("folds_by") == "data set":
        return max(len(datasets), 2)
    return int(settings.get("folds", 5))


def _seen_by(version_id: str) -> set[str]:
    """Return the ids of the data sets that the convolutional layers of a version were trained on,
    including those of the versions that it started from.
    """
    seen: set[str] = set()
    for _ in range(EARLIER_RUNS):
        version = db.session.scalar(
            select(ModelVersion)
            .where(ModelVersion.id == version_id)
            .options(joinedload(ModelVersion.run).selectinload(TrainingRun.datasets))
        )
        if version is None or version.run is None:
            break
        if learns_features(version.architecture, version.run.settings):
            seen |= {dataset.id for dataset in version.run.datasets}
        version_id = version.run.initial_weights.partition(":")[2]
    return seen


def _card_in(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _encoder_of(architecture: str) -> str | None:
    known = ARCHITECTURES.get(architecture)
    return known.encoder if known else None
