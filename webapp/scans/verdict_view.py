"""The result on a scan's page as a scale: the probability, the threshold and the inconclusive band;
and the meaning of the threshold in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from ml.named_points import meaning_of_threshold
from ml.verdict import inconclusive_band
from webapp.charts.axes import Axes
from webapp.display import percent
from webapp.extensions import db
from webapp.models import ModelVersion, Prediction

END_SHARE = 0.16
"""Labels within this fraction of either end of the scale are aligned to that end."""
LEAST_APART = 2 * END_SHARE
"""Fraction of the scale below which the label of an end would overlap that of the threshold."""
CARD_FIELDS = (
    "threshold",
    "uncertain_low",
    "uncertain_high",
    "scan_threshold",
    "scan_uncertain_low",
    "scan_uncertain_high",
    "points",
    "curves",
    "metrics",
    "patient_metrics",
)


@dataclass(frozen=True)
class Label:
    """A text at an x position of the SVG, with its `text-anchor`."""

    x: float
    anchor: str
    text: str


@dataclass(frozen=True)
class VerdictScale:
    """A scale from 0% to 100%, in pixels of its SVG.

    Attributes:
        mark_label: the probability.
        threshold_x: x of the threshold.
        band_x_width: x and width of the inconclusive band; None if there is none.
        labels: the texts below the scale.
        band_text: "37% to 51%", or empty.
        meaning: how often the model is right at this threshold; empty if its card has no metrics.
    """

    axes: Axes
    mark_label: Label
    threshold_x: float
    band_x_width: tuple[float, float] | None
    labels: tuple[Label, ...]
    band_text: str
    meaning: str


def verdict_scale(prediction: Prediction) -> VerdictScale:
    """Return the scale of a prediction, with the band of the version that made it."""
    card = _card_of(prediction)
    of_series = len(prediction.slices) > 1
    threshold = prediction.threshold
    low, high = inconclusive_band(card, threshold, of_series=of_series) or (threshold, threshold)
    axes = Axes(left=4, top=22, width=312, height=14)
    level = "patient" if of_series else "slice"
    is_trained = threshold == _trained_threshold(card, of_series=of_series)
    return VerdictScale(
        axes=axes,
        mark_label=_label(axes, prediction.probability, percent(prediction.probability)),
        threshold_x=axes.x(threshold),
        band_x_width=(axes.x(low), round(axes.x(high) - axes.x(low), 1)) if low < high else None,
        labels=_labels(axes, threshold),
        band_text=f"{percent(low, 0)} to {percent(high, 0)}" if low < high else "",
        meaning=(
            meaning_of_threshold(card, level, threshold, is_trained) if "metrics" in card else ""
        ),
    )


def _card_of(prediction: Prediction) -> dict[str, Any]:
    """Return the fields of the version's card that the scale depends on."""
    columns = [ModelVersion.card[name].label(name) for name in CARD_FIELDS]
    row = db.session.execute(select(*columns).where(ModelVersion.id == prediction.model_version_id))
    return {name: value for name, value in row.mappings().one().items() if value is not None}


def _trained_threshold(card: Mapping[str, Any], *, of_series: bool) -> float | None:
    """Return the threshold of the card for a scan; older cards have one for slices and series."""
    has_scan_threshold = card.get("scan_threshold", -1.0) >= 0
    return card.get("scan_threshold" if of_series and has_scan_threshold else "threshold")


def _labels(axes: Axes, threshold: float) -> tuple[Label, ...]:
    ends = [
        _label(axes, end, percent(end, 0))
        for end in (0.0, 1.0)
        if abs(end - threshold) > LEAST_APART
    ]
    return (*ends, _label(axes, threshold, f"threshold {percent(threshold, 0)}"))


def _label(axes: Axes, share: float, text: str) -> Label:
    anchor = "start" if share < END_SHARE else "end" if share > 1 - END_SHARE else "middle"
    return Label(axes.x(share), anchor, text)
