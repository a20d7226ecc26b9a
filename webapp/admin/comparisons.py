"""Conclusions from the comparison of two versions: better, worse, or not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import joinedload

from ml.named_points import meaning_of_rates, point_at
from webapp.charts.roc import Overlay, precision_overlay, roc_overlay
from webapp.display import signed
from webapp.extensions import db
from webapp.models import Comparison, ModelVersion, comparison_of

BETTER, NOT_WORSE, WORSE, NOT_COMPARABLE = "better", "not worse", "worse", "not comparable"
FEWEST_PATIENTS = 10
"""Minimum number of common images of each class; fewer do not show which version is better."""
LEVELS = ("slice", "patient")
MOST_COMPARED = 50


@dataclass(frozen=True)
class Compared:
    """Two versions on the images of one source that both have predictions for.

    Attributes:
        source: "out of fold", or the name of a data set.
        verdict: a constant of this module.
        sentence: the verdict in words.
        found: what `worker.learning.comparison` wrote.
        charts: by level, the overlaid ROC and precision-recall curves, if there are any.
    """

    source: str
    verdict: str
    sentence: str
    result: Mapping[str, Any]

    @property
    def charts(self) -> dict[str, tuple[Overlay, Overlay]]:
        """By level, ROC and precision-recall curves of both versions."""
        charts = {}
        for level in LEVELS:
            figures = self.result.get(level) or {}
            curves = {
                name: run["curve"]
                for name, run in (figures.get("runs") or {}).items()
                if run["curve"]
            }
            if len(curves) == 2:
                counts = figures["positive"], figures["negative"]
                charts[level] = roc_overlay(curves), precision_overlay(curves, *counts)
        return charts


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold finds with one of two versions on the patients of one source."""

    source: str
    whose: str
    sensitivity: float
    specificity: float
    meaning: str


def both_at(compared: Sequence[Compared], threshold: float) -> list[AtThreshold]:
    """Return the figures by patient at a threshold, 0..1, of the version ("own") and of the other
    one, for each source that has curves of both.
    """
    rows = []
    for source in compared:
        if "patient" not in source.charts:
            continue
        for whose, run in source.result["patient"]["runs"].items():
            rates = point_at(run["curve"], threshold)
            shares = rates["sensitivity"], rates["specificity"]
            with_it, without = (
                source.result["patient"].get(name) for name in ("positive", "negative")
            )
            meaning = meaning_of_rates(rates, with_it, without, "patient")
            rows.append(AtThreshold(source.source, whose, *shares, meaning))
    return rows


def results_between(version: ModelVersion, other: ModelVersion) -> list[Any] | None:
    """Return the results of a version minus another, from the comparison stored for either; None if
    there is none.
    """
    row = comparison_of(version, other)
    if row is not None and row.results is not None:
        return row.results
    row = comparison_of(other, version)
    if row is not None and row.results is not None:
        return [reversed_result(result) for result in row.results]
    return None


def comparisons_of(version: ModelVersion) -> list[dict[str, Any]]:
    """Return the comparisons of a version with others, newest first, each with "version_id" and
    "card_id" of the other version: one for each source of the images, although each version of a
    pair may have been compared with the other.
    """
    rows = db.session.scalars(
        select(Comparison)
        .where(
            or_(Comparison.version_id == version.id, Comparison.other_id == version.id),
            Comparison.results.is_not(None),
        )
        .options(
            joinedload(Comparison.version).load_only(ModelVersion.card_id),
            joinedload(Comparison.other).load_only(ModelVersion.card_id),
        )
        .order_by(Comparison.finished_at.desc(), Comparison.id)
        .limit(MOST_COMPARED)
    )
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        is_own = row.version_id == version.id
        other = row.other if is_own else row.version
        for result in row.results or []:
            shown = result if is_own else reversed_result(result)
            named = {**shown, "version_id": other.id, "card_id": other.card_id}
            newest.setdefault((other.id, result["source"]), named)
    return list(newest.values())


def reversed_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of a comparison with the roles of both versions swapped."""
    levels = {level: _reversed_level(result[level]) for level in LEVELS if level in result}
    sides = {"own": result.get("other"), "other": result.get("own")}
    reason = result.get("reason")
    if reason is not None:
        # The sentence refers to "this version" and "the other version".
        swapped = {"This version": "The other version", "The other version": "This version"}
        for start, instead in swapped.items():
            if reason.startswith(start):
                sides["reason"] = instead + reason.removeprefix(start)
                break
    return {**result, **sides, **levels}


def _reversed_level(level: Mapping[str, Any]) -> dict[str, Any]:
    turned = {name: _negated(value) for name, value in level.items() if _is_figure(value)}
    if runs := level.get("runs"):
        turned["runs"] = {"own": runs["other"], "other": runs["own"]}
    return {**level, **turned}


def _is_figure(value: Any) -> bool:
    return isinstance(value, Mapping) and "value" in value


def _negated(figure: Mapping[str, Any]) -> dict[str, Any]:
    if figure["value"] is None:
        return dict(figure)
    low, high = (None if figure[end] is None else -figure[end] for end in ("high", "low"))
    return {**figure, "value": -figure["value"], "low": low, "high": high}


def compared_by_patient(results: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """Return the conclusion from each result of a comparison, by patient."""
    return [Compared(result["source"], *_verdict_on(result), result) for result in results]


def verdict_of(compared: Sequence[Compared]) -> str:
    """Return the overall verdict: worse if worse on any source."""
    verdicts = {source.verdict for source in compared}
    for verdict in (WORSE, BETTER, NOT_WORSE):
        if verdict in verdicts:
            return verdict
    return NOT_COMPARABLE


def _verdict_on(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return verdict and sentence of one result."""
    if "patient" not in result:
        return NOT_COMPARABLE, result.get("reason") or "Nothing was compared."
    level = result["patient"]
    difference = level["auroc"]
    positive, negative = level.get("positive"), level.get("negative")
    if not level["n"]:
        return NOT_COMPARABLE, "The two versions have no patient in common."
    if difference["value"] is None:
        return NOT_COMPARABLE, f"AUROC by patient: {difference['reason']}."
    if positive is None or negative is None:
        return (
            NOT_COMPARABLE,
            "This comparison was made by an earlier version of Hemoscan. Please compare again.",
        )
    if min(positive, negative) < FEWEST_PATIENTS or difference["low"] is None:
        return NOT_COMPARABLE, (
            f"Only {positive} patients with hemorrhage and {negative} without are in common; at"
            f" least {FEWEST_PATIENTS} of each are needed."
        )
    numbers = (
        f"AUROC by patient {signed(difference['value'])} ({signed(difference['low'])} to"
        f" {signed(difference['high'])}) on {level['n']} patients, {positive} with hemorrhage"
    )
    if difference["high"] < 0:
        return WORSE, f"Worse: {numbers}."
    if difference["low"] > 0:
        return BETTER, f"Better: {numbers}."
    return NOT_WORSE, f"Not shown to be worse: {numbers}; the interval includes 0."
