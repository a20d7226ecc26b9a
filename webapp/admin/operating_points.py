"""The operating points that an administrator can choose for a model version, each with its meaning
per 100 scans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.named_points import NOUNS, POINTS, meaning_of_threshold, without_counts
from webapp.models import OWN_THRESHOLDS, ModelVersion, OperatingPoint

NO_POINTS = "This version’s card has no named operating points."
AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Described:
    """An operating point with its thresholds, 0..1, and a sentence for each level; the sentence is
    empty if there are no figures.

    Attributes:
        reads: the input of its model, "slice" or "series".
    """

    name: str
    scan_threshold: float
    slice_threshold: float
    by_scan: str
    by_slice: str
    reads: str

    @property
    def meaning(self) -> str:
        """Its meaning for the input of the model: per 100 slices for a slice model, which analyzes
        series only while no series model is live.
        """
        return (self.by_slice if self.reads == "slice" else "") or self.by_scan

    @property
    def in_short(self) -> str:
        """The meaning without the numbers that it was measured on."""
        return without_counts(self.meaning)


def chosen_for(version: ModelVersion) -> Described:
    """Return the operating point at which workers use a version."""
    return described(version.card, version.operating_point)


def offered_for(version: ModelVersion) -> list[Described]:
    """Return the points that can be chosen without entering thresholds: first the one that the
    version was trained for, then the named ones.
    """
    names = POINTS if version.card.get("points") else ()
    return [
        described(version.card, point)
        for point in (OperatingPoint(), *(named(version.card, name) for name in names))
    ]


def named(card: Mapping[str, Any], name: str) -> OperatingPoint:
    """Return a named point of a card that has named points."""
    thresholds = {level: card["points"][level][name]["threshold"] for level in NOUNS}
    return OperatingPoint(name, thresholds["slice"], thresholds["patient"])


def described(card: Mapping[str, Any], point: OperatingPoint) -> Described:
    """Return an operating point of a card with its meaning."""
    trained = {"slice": card["threshold"], "patient": card.get("scan_threshold", -1.0)}
    if trained["patient"] < 0:  # the card predates thresholds by scan
        trained["patient"] = trained["slice"]
    chosen = {"slice": point.slice_threshold, "patient": point.scan_threshold}
    thresholds = {
        level: trained[level] if chosen_threshold is None else chosen_threshold
        for level, chosen_threshold in chosen.items()
    }
    sentences = {
        level: meaning_of_threshold(card, level, threshold, threshold == trained[level])
        for level, threshold in thresholds.items()
    }
    return Described(
        point.name or AS_TRAINED,
        thresholds["patient"],
        thresholds["slice"],
        sentences["patient"],
        sentences["slice"],
        card.get("reads", "series"),
    )


def requested_point(
    version: ModelVersion, name: str, slice_threshold: str, scan_threshold: str
) -> OperatingPoint:
    """Return the operating point that a form requests: "as trained", a named one, or "own" with one
    or two thresholds as text.

    Raises:
        ValueError: the version has no such point, or a threshold is invalid; the message is a
            sentence.
    """
    if name == AS_TRAINED:
        return OperatingPoint()
    if name == OWN_THRESHOLDS:
        thresholds = [
            threshold_of(text) if text else None for text in (slice_threshold, scan_threshold)
        ]
        if thresholds == [None, None]:
            raise ValueError("Enter a threshold for series, for single slices, or for both.")
        return OperatingPoint(OWN_THRESHOLDS, *thresholds)
    if name not in POINTS:
        raise ValueError("Choose one of the operating points listed.")
    if not version.card.get("points"):
        raise ValueError(NO_POINTS)
    return named(version.card, name)


def threshold_of(text: str) -> float:
    """Parse a threshold.

    Raises:
        ValueError: it is not a threshold; the message is a sentence.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError("A threshold must be a number from 0 to 1, such as 0.25.")
    return value
