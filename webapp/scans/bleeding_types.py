"""Types of hemorrhage on a scan's page: the probability of each, and how well the model detected it
in its evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from webapp.extensions import db
from webapp.models import ModelVersion, Prediction


def typed(prediction: Prediction | None) -> dict[str, list[Any]]:
    """Return `types`, the most probable first, and `unreported_types`, those that were evaluated
    but are not reported; both are empty for a negative result outside the inconclusive band.

    Each type has `name`, `probability`, `trust` (a sentence) and, in a series, `slice`: the slice
    where it is most probable (`most_probable_slice`).
    """
    if prediction is None or not (prediction.positive or prediction.uncertain):
        return {"types": [], "unreported_types": []}
    evaluated = (
        db.session.scalar(
            select(ModelVersion.card["types"]).where(ModelVersion.id == prediction.model_version_id)
        )
        or {}
    )
    types = [
        {
            "name": name,
            "probability": estimate["probability"],
            "slice": most_probable_slice(estimate["slices"]),
            "trust": detection_of(evaluated.get(name, {})),
        }
        for name, estimate in (prediction.types or {}).items()
    ]
    types.sort(key=lambda type: -type["probability"])
    return {
        "types": types,
        "unreported_types": [
            name for name, evaluation in evaluated.items() if not evaluation.get("given")
        ],
    }


def most_probable_slice(probabilities: Sequence[float]) -> dict[str, int] | None:
    """Return the `index` from 0 and the `number` from 1 of the slice with the highest probability;
    None if there is only one slice.
    """
    if len(probabilities) <= 1:
        return None
    index = probabilities.index(max(probabilities))
    return {"index": index, "number": index + 1}


def detection_of(evaluated: Mapping[str, Any]) -> str:
    """Return how well a model detects one type, according to its card, as a sentence."""
    if not evaluated:
        return "This type has not been evaluated."
    patients = evaluated["patients"]
    if "patient" not in evaluated:
        return (
            f"Only {patients} patients with this type were available for training and testing,"
            " so this probability is unreliable."
        )
    auroc, apart = (
        evaluated["patient"].get(figure, {}) for figure in ("auroc", "auroc_among_bleeding")
    )
    sentence = f"AUROC {_figure(auroc)} among all test patients, {patients} of whom have this type"
    return sentence + (
        f"; {_figure(apart)} among patients with hemorrhage."
        if apart.get("value") is not None
        else "."
    )


def _figure(figure: Mapping[str, Any]) -> str:
    if figure.get("value") is None:
        return "unknown"
    if figure.get("low") is None:
        return f"{figure['value']:.2f}"
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"
