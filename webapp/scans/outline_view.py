"""The outline of a hemorrhage on a scan's page: its volume, and how well its model's outlines agree
with annotated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from webapp.extensions import db
from webapp.models import ModelVersion, Prediction

NOT_COMPARED = "The agreement of this model’s outlines with annotated ones was not measured."


@dataclass(frozen=True)
class OutlineView:
    """What a page says about an outline.

    Attributes:
        volume: such as "about 12 mL"; empty if it is unknown.
        volume_sentence: the same as a sentence, or why it is unknown.
        agreement: a sentence about Dice's coefficient on test data.
        is_drawn: whether something is outlined.
    """

    volume: str
    volume_sentence: str
    agreement: str
    is_drawn: bool


def outline_view(prediction: Prediction | None) -> OutlineView | None:
    """Return what a page shows about the outline of a scan; None if its model gives none, or found
    no hemorrhage.
    """
    if prediction is None or prediction.outlined_slices is None:
        return None
    outlines = select(ModelVersion.card["outlines"])
    measured = db.session.scalar(outlines.where(ModelVersion.id == prediction.model_version_id))
    return OutlineView(
        volume="" if prediction.volume_ml is None else volume_text(prediction.volume_ml),
        volume_sentence=volume_sentence(prediction),
        agreement=agreement(measured or {}),
        is_drawn=bool(prediction.outlined_slices),
    )


def volume_sentence(prediction: Prediction) -> str:
    """Return the outlined volume, or why it is unknown, as a sentence; empty if the model gives no
    outlines, or found no hemorrhage.
    """
    if prediction.outlined_slices is None:
        return ""
    if prediction.volume_ml is not None:
        return f"The volume outlined by the model is {volume_text(prediction.volume_ml)}."
    because = prediction.no_volume_because
    return f"No volume: {because[0].lower()}{because[1:]}" if because else ""


def volume_text(volume_ml: float) -> str:
    """Format a volume with two significant digits at most, because no outline is more precise than
    that.
    """
    if volume_ml < 1:
        return "less than 1 mL"
    rounded = round(volume_ml, -1 if volume_ml >= 99.5 else 0)
    return f"about {rounded:.0f} mL"


def agreement(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how well outlines agree with annotated ones, as a sentence.

    Args:
        measured: `ml.artifacts.card.Card.outlines` as JSON.
    """
    overlaps = [
        f"{dice['value']:.2f} ({dice['low']:.2f} to {dice['high']:.2f}) on {dice['n']} patients of"
        f" {name}"
        for name, dice in ((name, figures["patient_dice"]) for name, figures in measured.items())
        if None not in (dice["value"], dice["low"], dice["high"])
    ]
    if not overlaps:
        return NOT_COMPARED
    return (
        "On patients that the model had not seen, the overlap with annotated outlines (Dice"
        f" coefficient, 1 is perfect) was {'; '.join(overlaps)}."
    )
