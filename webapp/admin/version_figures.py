"""The figures of a model version on its page and its run's page: four tiles, curves, and the
figures at any threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml.named_points import NOUNS, point_at, with_widths
from webapp.admin.operating_points import chosen_for
from webapp.charts.calibration import calibration_chart
from webapp.charts.roc import RocChart, precision_overlay, roc_at_chart, roc_overlay
from webapp.models import OWN_THRESHOLDS, ModelVersion

LEVELS = ("patient", "slice")
CARD_TABS = {
    "curves": "Curves",
    "mistakes": "Mistakes",
    "figures": "Figures",
    "controls": "Controls",
    "settings": "Settings",
}
"""The tabs that a version's page and its run's page share: the model card."""
USUAL_PREVALENCE = 10.0
PREVALENCES = 0.1, 99.0
"""The range of prevalences that may be entered, in percent."""


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top of a page.

    Attributes:
        title: the name of the figure.
        figure: an `ml.figures.Estimate` as JSON; None if the card has none.
        what: what it was measured on, or why it has no interval.
        is_share: whether it is shown in percent, as in the tables of operating points.
    """

    title: str
    figure: Mapping[str, Any] | None
    what: str
    is_share: bool = False


@dataclass(frozen=True)
class AtThreshold:
    """The figures at a threshold, and their meaning per 100 scans.

    Attributes:
        level: "patient" or "slice".
        noun: what is counted, "scans" or "slices".
        threshold: 0..1.
        prevalence: the share with hemorrhage, in percent.
        sensitivity, specificity: 0..1, with the numbers that they are based on; None if unknown.
        ppv, npv: at that prevalence; None if no scan is called positive or negative.
        alarms, true_alarms, false_alarms, missed: per 100.
        chart: the point on the ROC curve.
    """

    level: str
    noun: str
    threshold: float
    prevalence: float
    sensitivity: float
    specificity: float
    positive: int | None
    negative: int | None
    ppv: float | None
    npv: float | None
    alarms: float
    true_alarms: float
    false_alarms: float
    missed: float
    chart: RocChart


@dataclass(frozen=True)
class VersionFigures:
    """The figures at the top of the page of a version or of its run.

    Attributes:
        level: the level at which the version is judged (`level_of`).
        has_patients: whether figures by patient differ from those by slice.
        tiles: sensitivity and specificity at the operating point, AUROC and calibration.
        charts: by level (`charts_of`).
        at: the figures at the chosen threshold; None if the card has no curves.
        levels: the levels with a curve.
    """

    level: str
    has_patients: bool
    tiles: Sequence[Tile]
    charts: Mapping[str, Mapping[str, Any]]
    at: AtThreshold | None
    levels: Sequence[str]


def figures_of(version: ModelVersion, arguments: Mapping[str, str] | None = None) -> VersionFigures:
    """Return the figures of a version; `arguments` are as in `requested_threshold`, but errors in
    them are ignored.
    """
    has_patients = _has_patients(version.card)
    levels = [level for level in LEVELS if curve_of(version, level)]
    try:
        at = requested_threshold(version, arguments or {})
    except ValueError:
        at = requested_threshold(version, {})
    tiles = tiles_of(version)
    charts = charts_of(version.curves or {}, levels_shown(has_patients))
    return VersionFigures(level_of(version), has_patients, tiles, charts, at, levels)


def level_of(version: ModelVersion) -> str:
    """Return the level at which a version is judged: "slice" if it reads slices, because it
    analyzes series only while no series model is live, or if figures by patient would be the same;
    otherwise "patient".
    """
    return "patient" if version.reads != "slice" and _has_patients(version.card) else "slice"


def _has_patients(card: Mapping[str, Any]) -> bool:
    """Return whether patients in the test data have several slices."""
    return differ_by_patient(card.get("patient_metrics"), card["metrics"])


def differ_by_patient(
    by_patient: Mapping[str, Any] | None, by_slice: Mapping[str, Any] | None
) -> bool:
    """Return whether metrics by patient have other numbers than those by slice; if not, each slice
    counts as a separate patient, and both are the same.
    """
    of_patients = (by_patient or {}).get("auroc") or {}
    of_slices = (by_slice or {}).get("auroc") or {}
    return bool(of_patients) and of_patients.get("n") != of_slices.get("n")


def levels_shown(has_patients: bool) -> Sequence[str]:
    """Return the levels whose figures and curves are worth showing."""
    return LEVELS if has_patients else ("slice",)


def tiles_of(version: ModelVersion) -> list[Tile]:
    """Return the tiles of a version."""
    card, level = with_widths(version.card), level_of(version)
    metrics = card["patient_metrics"] if level == "patient" else card["metrics"]
    at_point = _at_point(version, level, metrics)
    noun = "patients" if level == "patient" else "images"
    point = version.operating_point.name or "as trained"
    tiles, leaves_out_single_images = [], False
    for name, title, which in (
        ("sensitivity", "Sensitivity", "with hemorrhage"),
        ("specificity", "Specificity", "without hemorrhage"),
    ):
        figure = at_point.get(name)
        count = (figure or {}).get("n")
        is_of_all = count == (metrics.get(name) or {}).get("n")
        # Operating points for scans are evaluated on series only; the other figures on all
        # patients.
        is_of_series = level == "patient" and not is_of_all
        leaves_out_single_images |= is_of_series and bool(count)
        counted = "scans of several slices" if is_of_series else noun
        of = f"{count:,} {counted} {which}" if count else noun
        tiles.append(Tile(f"{title}, {point}", figure, of, is_share=True))
    area, error = metrics.get("auroc"), metrics.get("ece")
    of_all = f"{area['n']:,} {noun}" if area else noun
    if leaves_out_single_images:
        of_all += ", those with a single image included"
    tiles.append(Tile("AUROC", area, of_all))
    tiles.append(
        Tile("Calibration error", error, "mean gap between predicted and observed; 0 is perfect")
    )
    return tiles


def _at_point(version: ModelVersion, level: str, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return sensitivity and specificity at the operating point that workers use."""
    points = with_widths((version.card.get("points") or {}).get(level) or {})
    chosen = chosen_for(version)
    threshold = chosen.scan_threshold if level == "patient" else chosen.slice_threshold
    if version.point is None:
        # The trained threshold is usually that of a named point, which is evaluated on what the
        # threshold is for: scans of several slices, without patients who have a single image.
        trained = str((version.card.get("settings") or {}).get("threshold"))
        point = points.get("sensitive" if trained == "sensitivity" else trained) or {}
        return dict(point if point.get("threshold") == threshold else metrics)
    if version.point != OWN_THRESHOLDS:
        return dict(points.get(version.point) or {})
    curve = curve_of(version, level)
    if not curve:
        return {}
    point = point_at(curve, threshold)
    positive, negative = _counts_of_curve(version, level)
    return {
        name: {"value": point[name], "low": None, "high": None, "n": count}
        for name, count in (("sensitivity", positive), ("specificity", negative))
    }


def curve_of(version: ModelVersion, level: str) -> Sequence[Mapping[str, float]]:
    """Return the curve of thresholds at a level: from the card or, if the card predates curves,
    from the stored predictions; empty if there is neither.
    """
    of_card = (version.card.get("curves") or {}).get(level)
    return of_card or ((version.curves or {}).get(level) or {}).get("thresholds") or ()


def requested_threshold(version: ModelVersion, arguments: Mapping[str, str]) -> AtThreshold | None:
    """Return the figures at the requested threshold; None if there is no curve.

    Args:
        arguments: "level", "at" or the form field ("scan_threshold", "slice_threshold") with the
            threshold, and "prevalence" (in percent), all as text. For a missing or empty value, the
            default is the level of the tiles, the threshold in use, and `USUAL_PREVALENCE`.

    Raises:
        ValueError: one of them is invalid; the message is a sentence.
    """
    usual_levels = (level_of(version), "slice", "patient")
    known = (level for level in usual_levels if curve_of(version, level))
    level = arguments.get("level") or next(known, "slice")
    if level not in LEVELS:
        raise ValueError("The level must be patient or slice.")
    curve = curve_of(version, level)
    if not curve:
        return None
    chosen = chosen_for(version)
    usual = chosen.scan_threshold if level == "patient" else chosen.slice_threshold
    threshold = _number(
        arguments.get("scan_threshold" if level == "patient" else "slice_threshold")
        or arguments.get("at"),
        usual,
        (0.0, 1.0),
        "A threshold must be a number from 0 to 1, such as 0.25.",
    )
    lowest, highest = PREVALENCES
    prevalence = _number(
        arguments.get("prevalence"),
        USUAL_PREVALENCE,
        PREVALENCES,
        f"The prevalence must be a percentage from {lowest:g} to {highest:g}.",
    )
    return _at_threshold(version, level, threshold, prevalence)


def _number(text: str | None, usual: float, between: tuple[float, float], sentence: str) -> float:
    if not text:
        return usual
    try:
        value = float(text)
    except ValueError:
        raise ValueError(sentence) from None
    if not between[0] <= value <= between[1]:
        raise ValueError(sentence)
    return value


def _at_threshold(
    version: ModelVersion, level: str, threshold: float, prevalence: float
) -> AtThreshold:
    curve = curve_of(version, level)
    point = point_at(curve, threshold)
    sensitivity, specificity = point["sensitivity"], point["specificity"]
    positive, negative = _counts_of_curve(version, level)
    true_alarms = prevalence * sensitivity
    false_alarms = (100 - prevalence) * (1 - specificity)
    missed, clear = prevalence - true_alarms, (100 - prevalence) * specificity
    alarms = true_alarms + false_alarms
    return AtThreshold(
        level=level,
        noun=NOUNS[level],
        threshold=threshold,
        prevalence=prevalence,
        sensitivity=sensitivity,
        specificity=specificity,
        positive=positive,
        negative=negative,
        ppv=true_alarms / alarms if alarms else None,
        npv=clear / (clear + missed) if clear + missed else None,
        alarms=alarms,
        true_alarms=true_alarms,
        false_alarms=false_alarms,
        missed=missed,
        chart=roc_at_chart(curve, threshold),
    )


def _counts_of_curve(version: ModelVersion, level: str) -> tuple[int | None, int | None]:
    """Return the numbers of predictions with and without hemorrhage behind a curve: those of the
    card's named points, which come from the same predictions, or those of the stored predictions.
    """
    if (version.card.get("curves") or {}).get(level):
        point = ((version.card.get("points") or {}).get(level) or {}).get("balanced") or {}
        positive, negative = (
            (point.get(name) or {}).get("n") for name in ("sensitivity", "specificity")
        )
        return positive, negative
    counts = (version.curves or {}).get(level) or {}
    return counts.get("positive"), counts.get("negative")


def charts_of(curves: Mapping[str, Any], levels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, by level, the charts that its predictions allow: "roc" and "precision" need both
    classes, "calibration" needs any predictions.
    """
    charts: dict[str, dict[str, Any]] = {}
    for level in levels:
        own_curves = curves.get(level)
        if not own_curves or not own_curves["calibration"]:
            continue
        charts[level] = {"calibration": calibration_chart(own_curves["calibration"])}
        if own_curves["thresholds"]:
            curves_drawn = {"own": own_curves["thresholds"]}
            charts[level]["roc"] = roc_overlay(curves_drawn)
            charts[level]["precision"] = precision_overlay(
                curves_drawn, own_curves["positive"], own_curves["negative"]
            )
    return charts
