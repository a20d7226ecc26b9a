"""The outline of a hemorrhage on a scan's page: its volume, and how well outlines of its model
agree with annotated ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from webapp.extensions import db
from webapp.models import ModelVersion, Prediction

NOT_COMPARED = "How well the outlines of this model agree with annotated ones was not measured."


@dataclass(frozen=True)
class OutlineView:
    """What a page tells of an outline.

    Attributes:
        volume: such as "about 12 mL"; empty where it is unknown.
        no_volume_because: then a sentence why.
        agreement: a sentence about Dice's coefficient on test data.
        is_drawn: something is outlined.
    """

    volume: str
    no_volume_because: str
    agreement: str
    is_drawn: bool


def outline_view(prediction: Prediction | None) -> OutlineView | None:
    """Return what is told of the outline of a scan; None where its model gives none, or found no
    hemorrhage.
    """
    if prediction is None or prediction.outlined_slices is None:
        return None
    outlines = select(ModelVersion.card["outlines"])
    judged = db.session.scalar(outlines.where(ModelVersion.id == prediction.model_version_id))
    return OutlineView(
        volume="" if prediction.volume_ml is None else volume_text(prediction.volume_ml),
        no_volume_because=prediction.no_volume_because or "",
        agreement=agreement(judged or {}),
        is_drawn=bool(prediction.outlined_slices),
    )


def volume_text(volume_ml: float) -> str:
    """Return a volume with two digits at most, since no outline is more exact than that."""
    if volume_ml < 1:
        return "less than 1 mL"
    rounded = round(volume_ml, -1 if volume_ml >= 99.5 else 0)
    return f"about {rounded:.0f} mL"


def agreement(judged: Mapping[str, Mapping[str, Any]]) -> str:
    """Return how well outlines agree with annotated ones, in a sentence.

    Args:
        judged: `ml.artifacts.card.Card.outlines` as JSON.
    """
    told = [
        f"{dice['value']:.2f} ({dice['low']:.2f} to {dice['high']:.2f}) on {dice['n']} patients of"
        f" {name}"
        for name, dice in ((name, found["patient_dice"]) for name, found in judged.items())
        if None not in (dice["value"], dice["low"], dice["high"])
    ]
    if not told:
        return NOT_COMPARED
    return (
        "On patients that the model had not seen, the overlap with annotated outlines (Dice’s"
        f" coefficient, 1 at best) was {'; '.join(told)}."
    )
