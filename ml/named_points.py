"""The named operating points in a model's card: their validation, what a threshold means per 100
scans, and how certain that is.

Standard library only, because the web application imports this module.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from ml.errors import ArtifactError

POINTS = ("sensitive", "balanced", "specific")
"""The named operating points: 95% sensitivity (or the target that was set), equal weight for both
errors, and 95% specificity.
"""
PREVALENCES = (0.02, 0.1, 0.5)
"""Prevalences for which predictive values are reported."""
PERCENTAGES = tuple(f"{prevalence * 100:g}" for prevalence in PREVALENCES)
"""The same as the card's keys."""
NOUNS = {"patient": "scans", "slice": "slices"}
"""The levels of a card, with the noun for what is counted at each."""
COUNTED = {"patient": "patients", "slice": "slices"}
"""What the metrics of each level are measured on."""
SHARES = (
    *("accuracy", "sensitivity", "specificity", "ppv", "npv"),
    *("hottest_beats_random", "hottest_in_or_beside_mask", "without_outline"),
)
"""Entries of a card that are proportions of `n`."""
MEASURED_ON = " Measured on "
Z = NormalDist().inv_cdf(0.975)
ROUNDING = 1e-9

BLEEDING, HEALTHY = 10, 90
"""Out of 100 scans, as in the sentences."""


def wilson(count: float, n: float) -> tuple[float, float]:
    """Return the 95% confidence interval of the proportion count / n, n > 0 (E. B. Wilson 1927);
    `n` may be an effective number. SciPy's function takes whole numbers only, and the web
    application has no SciPy; a test compares the two.
    """
    share, spread = count / n, Z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half) if count else 0.0, min(1.0, middle + half) if count < n else 1.0


def with_widths(figures: Any, name: str = "") -> Any:
    """Return JSON results, a card or any part of one, in which every proportion has a valid
    interval.

    A bootstrap of a proportion of 0 or 1, such as 25 of 25, never varies, however small the sample:
    a Wilson interval replaces it. The predictive values of a point follow from it. An interval that
    does not contain its estimate, as earlier versions wrote for calibration errors, is omitted.

    Args:
        name: the key of `figures` in its parent.
    """
    if isinstance(figures, list):
        return [with_widths(part, name) for part in figures]
    if not isinstance(figures, dict):
        return figures
    if name in SHARES and _is_without_width(figures):
        low, high = wilson(figures["value"] * figures["n"], figures["n"])
        return {**figures, "low": low, "high": high}
    if _is_outside(figures):
        return {**figures, "low": None, "high": None}
    wide = {key: with_widths(part, key) for key, part in figures.items()}
    rates = [figures.get(rate) for rate in ("sensitivity", "specificity")]
    if "ppv" in figures and any(_is_without_width(rate) for rate in rates):
        wide |= predictive_values(wide)
    return wide


def _is_without_width(figure: Any) -> bool:
    return (
        isinstance(figure, dict)
        and figure.get("value") in (0, 1)
        and figure.get("low") == figure.get("high") == figure["value"]
        and (figure.get("n") or 0) > 0
    )


def _is_outside(figure: Mapping[str, Any]) -> bool:
    value, low, high = (figure.get(name) for name in ("value", "low", "high"))
    if not all(isinstance(end, int | float) for end in (value, low, high)):
        return False
    return not low - ROUNDING <= value <= high + ROUNDING  # type: ignore[operator]


def predictive_values(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predictive values of a point by prevalence, "ppv" and "npv", with intervals from
    those of its sensitivity and specificity, in which both are monotonic; empty if these are not by
    prevalence.
    """
    rates = [point["sensitivity"], point["specificity"]]
    if any(rate[end] is None for rate in rates for end in ("value", "low", "high")):
        return {}
    values: dict[str, Any] = {}
    for name, value_of in (("ppv", _ppv), ("npv", _npv)):
        measured = point[name]
        if not isinstance(measured, dict) or "value" in measured:
            return {}
        values[name] = dict(measured)
        for prevalence, percent in zip(PREVALENCES, PERCENTAGES, strict=True):
            ends = [value_of(prevalence, *(rate[end] for rate in rates)) for end in ("low", "high")]
            if measured[percent]["value"] is not None:
                low, high = (measured[percent]["value"] if end is None else end for end in ends)
                values[name][percent] = {**measured[percent], "low": low, "high": high}
    return values


def _ppv(prevalence: float, sensitivity: float, specificity: float) -> float | None:
    right, called = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    return right / (right + called) if right + called else None


def _npv(prevalence: float, sensitivity: float, specificity: float) -> float | None:
    return _ppv(1 - prevalence, specificity, sensitivity)


def meaning_of_threshold(
    card: Mapping[str, Any], level: str, threshold: float, is_trained: bool
) -> str:
    """Return what a threshold means per 100, in a sentence; empty if the card does not contain
    that. In cards without operating points, only the trained threshold has metrics, by patient.

    Args:
        card: the card as JSON; "points", "curves", "metrics" and "patient_metrics" are used.
        level: "patient" or "slice".
        is_trained: whether it is the card's own threshold of that level.
    """
    if card.get("points"):
        return meaning_at(
            card["points"], level, threshold, (card.get("curves") or {}).get(level, ())
        )
    metrics = card["metrics"] if level == "slice" else card.get("patient_metrics") or {}
    rates = {name: metrics.get(name, {}) for name in ("sensitivity", "specificity")}
    if not is_trained or any(rate.get("value") is None for rate in rates.values()):
        return ""
    return meaning_of(rates, level)


def meaning_at(
    points: Mapping[str, Any],
    level: str,
    threshold: float,
    curve: Sequence[Mapping[str, float]] = (),
) -> str:
    """Return, in two sentences, what a threshold means per 100 scans or slices, and the number of
    people on which that was measured.

    A named point has its own metrics; for any other threshold, those of the two neighboring points
    give the range to expect.

    Args:
        points: `Card.points`, validated and not empty.
        level: a key of `NOUNS`.
        threshold: 0..1.
        curve: `Card.curves[level]` as JSON, if the card has it: then it gives the metrics of any
            other threshold.
    """
    ordered = [(name, points[level][name]) for name in POINTS]
    for _, point in ordered:
        if math.isclose(point["threshold"], threshold, rel_tol=1e-9):
            return meaning_of(point, level)
    if curve:
        rates = point_at(curve, threshold)
        known = ordered[0][1]  # measured on the same people at each threshold
        with_it, without = (known[name].get("n") for name in ("sensitivity", "specificity"))
        return meaning_of_rates(rates, with_it, without, level)
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
    meaning = f"{where} {per_hundred(NOUNS[level], sensitivity, specificity)}"
    measured = (below or above)[0][1]
    counts = {name: {"n": measured[name].get("n")} for name in ("sensitivity", "specificity")}
    return meaning + _measured(counts, level)


def point_at(curve: Sequence[Mapping[str, float]], threshold: float) -> Mapping[str, float]:
    """Return the point of a curve (ascending and not empty) that calls the same answers positive as
    the threshold: the first one at or above it.
    """
    return next((point for point in curve if point["threshold"] >= threshold), curve[-1])


def meaning_of_rates(
    rates: Mapping[str, float], with_it: int | None, without: int | None, level: str
) -> str:
    """Return what a point of a curve means per 100, like `meaning_of`, given the numbers of people
    or slices with and without hemorrhage on which it was measured.
    """
    point: dict[str, dict[str, Any]] = {}
    for name, n in (("sensitivity", with_it), ("specificity", without)):
        point[name] = {"value": rates[name], "n": n}
        # A person's slices are correlated, which only a bootstrap over people takes into account.
        if n and level == "patient":
            low, high = wilson(rates[name] * n, n)
            point[name] |= {"low": low, "high": high}
    return meaning_of(point, level)


def meaning_of(point: Mapping[str, Any], level: str) -> str:
    """Return, in two sentences, what sensitivity and specificity mean per 100 scans or slices, and
    how certain that is.

    Args:
        point: "sensitivity" and "specificity", each {"value", "low", "high", "n"}; null with a
            "reason" where undefined.
        level: a key of `NOUNS`.
    """
    if (reason := _undefined(point)) is not None:
        return f"Not measured: {reason}."
    sensitivity, specificity = (point[name]["value"] for name in ("sensitivity", "specificity"))
    meaning = per_hundred(NOUNS[level], (sensitivity, sensitivity), (specificity, specificity))
    return meaning + _measured(point, level)


def without_counts(meaning: str) -> str:
    """Return the first of the sentences of `meaning_of`: what is found, without the numbers on
    which that was measured.
    """
    return meaning.partition(MEASURED_ON)[0]


def _measured(point: Mapping[str, Any], level: str) -> str:
    """Return a sentence with the numbers on which the metrics of a point were measured, and their
    intervals if available; empty if the card does not contain them.
    """
    with_it, without = (point[name].get("n") for name in ("sensitivity", "specificity"))
    if not with_it or not without:
        return ""
    noun = COUNTED[level]
    measured = f"{MEASURED_ON}{with_it:,} {noun} with hemorrhage and {without:,} without"
    wide = with_widths({name: point[name] for name in ("sensitivity", "specificity")})
    detected, clear = ([wide[name].get(end) for end in ("low", "high")] for name in wide)
    if None in detected + clear:
        return f"{measured}."
    flagged = _range(HEALTHY * (1 - share) for share in reversed(clear))
    return (
        f"{measured}: {_range(BLEEDING * share for share in detected)} found and {flagged} flagged"
        " are plausible (95% intervals)."
    )


def _range(ends: Iterable[float]) -> str:
    low, high = map(round, ends)
    return f"{low}" if low == high else f"{low} to {high}"


def per_hundred(
    noun: str, sensitivity: tuple[float, float], specificity: tuple[float, float]
) -> str:
    """Return a sentence on what the lowest and highest sensitivity and specificity mean if 10 of
    100 have hemorrhage.
    """
    least, most = (round(BLEEDING * share) for share in sensitivity)
    if least == most == BLEEDING:
        detections = f"finds {'all' if min(sensitivity) == 1 else 'nearly all'} {BLEEDING}"
    elif least == most:
        detections = f"finds {most}, misses {BLEEDING - most}"
    else:
        detections = f"finds {least} to {most}, misses {BLEEDING - most} to {BLEEDING - least}"
    fewest, many = (round(HEALTHY * (1 - share)) for share in reversed(specificity))
    if many == 0:
        flagged = "none" if min(specificity) == 1 else "fewer than 1"
    else:
        flagged = f"{many}" if fewest == many else f"{fewest} to {many}"
    return (
        f"Of 100 {noun}, {BLEEDING} of them with hemorrhage: {detections}, flags {flagged} of the"
        f" {HEALTHY} without."
    )


def _undefined(point: Mapping[str, Any]) -> str | None:
    """Return why sensitivity or specificity is undefined, or None if both are defined."""
    for name in ("sensitivity", "specificity"):
        if point[name]["value"] is None:
            return str(point[name]["reason"])
    return None


def require_sound(points: Mapping[str, Any]) -> None:
    """Check the operating points of a card; an empty mapping is valid.

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
        by_prevalence = point.get(name)
        figures |= {
            f"{name} at {percent}%": by_prevalence.get(percent)
            if isinstance(by_prevalence, dict)
            else None
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
    """Return whether this is {"value", "low", "high"}, each within 0..1 or null, where a null value
    requires a "reason".
    """
    if not isinstance(figure, dict) or not {"value", "low", "high"} <= figure.keys():
        return False
    if figure["value"] is None:
        return isinstance(figure.get("reason"), str)
    return _is_share(figure["value"]) and all(
        figure[bound] is None or _is_share(figure[bound]) for bound in ("low", "high")
    )


def _require_order(points: Mapping[str, Any], names: tuple[str, str], level: str) -> None:
    """Check that the second point has no lower threshold, and no higher sensitivity or share of
    flagged scans, than the first.
    """
    first, second = (points[name] for name in names)
    rising = {
        "threshold": (first["threshold"], second["threshold"]),
        "specificity": (first["specificity"]["value"], second["specificity"]["value"]),
    }
    falling = {"sensitivity": (first["sensitivity"]["value"], second["sensitivity"]["value"])}
    for name, (earlier, later) in (rising | falling).items():
        if earlier is None or later is None:
            continue
        if (earlier - later if name in rising else later - earlier) > 1e-9:
            raise ArtifactError(
                f"The model's operating points by {level} contradict each other: the {name} of"
                f" {names[0]!r} is {earlier:.3f}, that of {names[1]!r} {later:.3f}."
            )
