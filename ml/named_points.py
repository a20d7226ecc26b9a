"""The named operating points of a model's card: what makes them sound, and what a threshold means
per 100 scans.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml.errors import ArtifactError

POINTS = ("sensitive", "balanced", "specific")
"""The named operating points: 95 % sensitivity (or the target set), equal care for both errors, and
95 % specificity.
"""
PREVALENCES = (0.02, 0.1, 0.5)
"""Shares of scans that bleed for which predictive values are reported."""
PERCENTAGES = tuple(f"{prevalence * 100:g}" for prevalence in PREVALENCES)
"""The same as the card's keys."""
NOUNS = {"patient": "scans", "slice": "slices"}
"""The levels of a card, with what is counted at each."""

BLEEDING, HEALTHY = 10, 90
"""Of 100 scans, as the sentences count them."""


def meaning_at(
    points: Mapping[str, Any],
    level: str,
    threshold: float,
    curve: Sequence[Mapping[str, float]] = (),
) -> str:
    """Return what a threshold means per 100 scans or slices, in a sentence.

    That of a named point is its own; for any other, the two points around it say what to expect.

    Args:
        points: `Card.points`, sound and not empty.
        level: a key of `NOUNS`.
        threshold: 0..1.
        curve: `Card.curves[level]` as JSON, where the card has it: then it says what any other
            threshold found.
    """
    ordered = [(name, points[level][name]) for name in POINTS]
    for _, point in ordered:
        if math.isclose(point["threshold"], threshold, rel_tol=1e-9):
            return meaning_of(point, level)
    if curve:
        found = found_at(curve, threshold)
        return per_hundred(
            NOUNS[level],
            (found["sensitivity"], found["sensitivity"]),
            (found["specificity"], found["specificity"]),
        )
    below = [(name, point) for name, point in ordered if point["threshold"] < threshold][-1:]
    above = [(name, point) for name, point in ordered if point["threshold"] > threshold][:1]
    for _, point in below + above:
        if (reason := _undefined(point)) is not None:
            return f"Not measured: {reason}."
    sensitivity = (
        above[0][1]["sensitivity"]["value"] if above else 0.0,
        below[0][1]["sensitivity"]["value"] if below else 1.0,
    )
    specificity = (
        below[0][1]["specificity"]["value"] if below else 0.0,
        above[0][1]["specificity"]["value"] if above else 1.0,
    )
    if below and above:
        where = f"Between {below[0][0]} and {above[0][0]}."
    elif below:
        where = f"Above the threshold of {below[0][0]}."
    else:
        where = f"Below the threshold of {above[0][0]}."
    return f"{where} {per_hundred(NOUNS[level], sensitivity, specificity)}"


def found_at(curve: Sequence[Mapping[str, float]], threshold: float) -> Mapping[str, float]:
    """Return the point of a curve, ascending and not empty, that calls the same answers positive as
    the threshold: the first one at or above it.
    """
    return next((point for point in curve if point["threshold"] >= threshold), curve[-1])


def meaning_of(point: Mapping[str, Any], level: str) -> str:
    """Return what sensitivity and specificity mean per 100 scans or slices, in a sentence.

    Args:
        point: "sensitivity" and "specificity", each {"value", ...}; null with a "reason" where
            undefined.
        level: a key of `NOUNS`.
    """
    if (reason := _undefined(point)) is not None:
        return f"Not measured: {reason}."
    sensitivity, specificity = (point[name]["value"] for name in ("sensitivity", "specificity"))
    return per_hundred(NOUNS[level], (sensitivity, sensitivity), (specificity, specificity))


def per_hundred(
    noun: str, sensitivity: tuple[float, float], specificity: tuple[float, float]
) -> str:
    """Return in a sentence what lowest and highest sensitivity and specificity mean where 10 of 100
    bleed.
    """
    least, most = (round(BLEEDING * share) for share in sensitivity)
    if least == most == BLEEDING:
        found = f"finds {'all' if min(sensitivity) == 1 else 'nearly all'} {BLEEDING}"
    elif least == most:
        found = f"finds {most}, misses {BLEEDING - most}"
    else:
        found = f"finds {least} to {most}, misses {BLEEDING - most} to {BLEEDING - least}"
    fewest, many = (round(HEALTHY * (1 - share)) for share in reversed(specificity))
    if many == 0:
        flagged = "none" if min(specificity) == 1 else "fewer than 1"
    else:
        flagged = f"{many}" if fewest == many else f"{fewest} to {many}"
    return (
        f"Of 100 {noun}, {BLEEDING} of them with hemorrhage: {found}, flags {flagged} of the"
        f" {HEALTHY} without."
    )


def _undefined(point: Mapping[str, Any]) -> str | None:
    """Return why sensitivity or specificity is undefined, or None."""
    for name in ("sensitivity", "specificity"):
        if point[name]["value"] is None:
            return str(point[name]["reason"])
    return None


def require_sound(points: Mapping[str, Any]) -> None:
    """Check the operating points of a card; none at all are sound.

    Raises:
        ArtifactError: a point or a figure is missing, a threshold or figure lies outside 0..1, or
            they contradict each other.
    """
    for level in NOUNS if points else ():
        of_level = points.get(level)
        if not isinstance(of_level, dict):
            raise ArtifactError(f"The model's card lacks operating points by {level}.")
        for name in POINTS:
            _require_complete(of_level.get(name), f"the operating point {name!r} by {level}")
        for first, second in itertools.pairwise(POINTS):
            _require_order(of_level, (first, second), level)


def _require_complete(point: Any, what: str) -> None:
    if not isinstance(point, dict):
        raise ArtifactError(f"The model's card lacks {what}.")
    if not _is_share(threshold := point.get("threshold")):
        raise ArtifactError(
            f"The threshold of {what} is {str(threshold)[:20]}; it must lie within 0 and 1."
        )
    figures = {name: point.get(name) for name in ("sensitivity", "specificity")}
    for name in ("ppv", "npv"):
        given = point.get(name)
        figures |= {
            f"{name} at {percent} %": given.get(percent) if isinstance(given, dict) else None
            for percent in PERCENTAGES
        }
    for name, figure in figures.items():
        if not _is_figure(figure):
            raise ArtifactError(
                f"The model's card lacks the {name} of {what}, or gives it outside 0 and 1."
            )


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_figure(figure: Any) -> bool:
    """True for {"value", "low", "high"}, each within 0..1 or null, a value of null with a
    "reason".
    """
    if not isinstance(figure, dict) or not {"value", "low", "high"} <= figure.keys():
        return False
    if figure["value"] is None:
        return isinstance(figure.get("reason"), str)
    return _is_share(figure["value"]) and all(
        figure[bound] is None or _is_share(figure[bound]) for bound in ("low", "high")
    )


def _require_order(points: Mapping[str, Any], names: tuple[str, str], level: str) -> None:
    """Check that the second point has no lower threshold, nor finds or flags more."""
    first, second = (points[name] for name in names)
    rising = {
        "threshold": (first["threshold"], second["threshold"]),
        "specificity": (first["specificity"]["value"], second["specificity"]["value"]),
    }
    falling = {"sensitivity": (first["sensitivity"]["value"], second["sensitivity"]["value"])}
    for name, (one, other) in (rising | falling).items():
        if one is None or other is None:
            continue
        if (one - other if name in rising else other - one) > 1e-9:
            raise ArtifactError(
                f"The model's operating points by {level} contradict each other: the {name} of"
                f" {names[0]!r} is {one:.3f}, that of {names[1]!r} {other:.3f}."
            )
