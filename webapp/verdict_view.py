"""The verdict on a scan's page as a scale: where the probability lies, the threshold, and the band
in which no answer is reliable; and what a threshold means, in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from webapp.admin.operating_points import meaning_of_threshold
from webapp.charts import Axes
from webapp.extensions import db
from webapp.models import ModelVersion, Prediction

NEAR = 0.16
"""Of the scale's length: a label this near to an end stands in place of the end's own."""
FIGURES = (
    "threshold",
    "uncertain_low",
    "uncertain_high",
    "scan_threshold",
    "scan_uncertain_low",
    "scan_uncertain_high",
    "points",
    "metrics",
    "patient_metrics",
)


@dataclass(frozen=True)
class Label:
    """A text at a place of the scale, and the side of it on which it stands."""

    x: float
    anchor: str
    text: str


@dataclass(frozen=True)
class VerdictScale:
    """A scale from 0 to 100 %, in pixels of its SVG.

    Attributes:
        mark, threshold: where the probability and the threshold lie.
        band: where the inconclusive band begins and how wide it is; None where there is none.
        labels: what stands below the scale.
        band_text: "37 % to 51 %", or empty.
        meaning: how often the model is right at this threshold, or empty where its card does not
            say.
    """

    axes: Axes
    mark: Label
    threshold: float
    band: tuple[float, float] | None
    labels: tuple[Label, ...]
    band_text: str
    meaning: str


def verdict_scale(prediction: Prediction) -> VerdictScale:
    """Return the scale of a prediction, with the band of the version that made it."""
    columns = [ModelVersion.card[name].label(name) for name in FIGURES]
    found = db.session.execute(
        select(*columns).where(ModelVersion.id == prediction.model_version_id)
    ).one()
    card = {name: value for name, value in found._mapping.items() if value is not None}
    of_scan = len(prediction.slices) > 1 and card.get("scan_threshold", -1.0) >= 0
    low, high = (
        card.get(f"{'scan_' if of_scan else ''}uncertain_{edge}", prediction.threshold)
        for edge in ("low", "high")
    )
    # As `ml.artifacts.card.Card.with_thresholds` has it.
    low, high = min(low, prediction.threshold), max(high, prediction.threshold)
    axes = Axes(left=4, top=22, width=312, height=14)
    level = "patient" if len(prediction.slices) > 1 else "slice"
    trained = card.get("scan_threshold" if of_scan else "threshold")
    return VerdictScale(
        axes=axes,
        mark=_label(axes, prediction.probability, _percent(prediction.probability)),
        threshold=axes.x(prediction.threshold),
        band=(axes.x(low), round(axes.x(high) - axes.x(low), 1)) if low < high else None,
        labels=_labels(axes, prediction.threshold),
        band_text=f"{_percent(low)} to {_percent(high)}" if low < high else "",
        meaning=(
            meaning_of_threshold(card, level, prediction.threshold, prediction.threshold == trained)
            if "metrics" in card
            else ""
        ),
    )


def _labels(axes: Axes, threshold: float) -> tuple[Label, ...]:
    ends = [
        _label(axes, end, _percent(end)) for end in (0.0, 1.0) if abs(end - threshold) > 2 * NEAR
    ]
    return (*ends, _label(axes, threshold, f"threshold {_percent(threshold)}"))


def _label(axes: Axes, share: float, text: str) -> Label:
    anchor = "start" if share < NEAR else "end" if share > 1 - NEAR else "middle"
    return Label(axes.x(share), anchor, text)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
