"""Calibration, threshold and inconclusive band of slices and of scans, fitted to held-out answers.

Series without hemorrhage are few and come from one hospital. Composite series, drawn from the
hemorrhage-free slices of many patients in data sets of single slices, show how the decisions on
normal scans vary across scanners. They count as a separate source, and are used only if an
architecture aggregates the decisions of slices by a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ml.datasets.examples import UNKNOWN
from ml.evaluation.calibration import OperatingPoint, operating_point
from ml.evaluation.curves import threshold_curve
from ml.evaluation.metrics import figures_at
from ml.figures import CurvePoint, PointFigures
from ml.models.contract import HeldOut, RunData, scan_rule_of
from ml.named_points import POINTS

FEWEST_SLICES = 2
"""A data set whose typical scan has fewer slices consists of single images; a few images of one
patient are not a series.
"""
SERIES_SLICES = 30
COMPOSITE_SERIES = 300
FEWEST_PEOPLE = 100
"""A data set with fewer patients with single slices gives no composite series, since these would
overlap.
"""


def series_of(run: RunData) -> np.ndarray:
    """Return which scans (s,) are series: those with several slices, in a data set of series."""
    sources = run.sources[run.first_of_scan]
    of_series = [
        name
        for name in np.unique(sources)
        if np.median(run.scan_sizes[sources == name]) >= FEWEST_SLICES
    ]
    return np.asarray((run.scan_sizes > 1) & np.isin(sources, of_series))


def operating_points(
    run: RunData, architecture: str, held_out: HeldOut, point: str | None = None
) -> tuple[OperatingPoint, OperatingPoint]:
    """Return the operating points of slices, and of scans of several slices.

    Args:
        run: the data of the run.
        architecture: a name of `ml.catalogue`; determines whether scans are predicted by a rule.
        held_out: decisions of models that were not trained on these slices and scans.
        point: a name of `ml.named_points.POINTS` in place of the setting "threshold".
    """
    chosen = point or str(run.settings.get("threshold", "balanced"))
    how: dict[str, Any] = {
        "point": "sensitive" if chosen == "sensitivity" else chosen,
        "target": float(run.settings.get("target_sensitivity", 0.95)),
    }
    of_slices = operating_point(
        run.labels[held_out.slices], held_out.decisions, run.sources[held_out.slices], **how
    )
    labels, decisions, sources = _scans(run, scan_rule_of(architecture), held_out)
    if len(np.unique(labels)) < 2:
        return of_slices, of_slices
    return of_slices, operating_point(labels, decisions, sources, prior=of_slices.platt, **how)


def _scans(
    run: RunData, rule: Callable[[np.ndarray], float] | None, held_out: HeldOut
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, decisions and sources of the scans that a scan's operating point is fitted to.

    Without composite series, only data sets with both classes of scans are used, if there are any:
    one that contains only patients with hemorrhage says nothing about a threshold.
    """
    all_labels = run.scan_labels
    several = series_of(run)[held_out.scans] & (all_labels[held_out.scans] != UNKNOWN)
    scans, decisions = held_out.scans[several], held_out.scan_decisions[several]
    labels, sources = all_labels[scans], run.sources[run.first_of_scan[scans]]
    sampled = composite_series(run, rule, held_out) if rule else {}
    if sampled and (labels == 1).any():
        return (
            np.concatenate([labels, *(np.zeros(len(values), int) for values in sampled.values())]),
            np.concatenate([decisions, *sampled.values()]),
            np.concatenate(
                [sources, *(np.full(len(values), name) for name, values in sampled.items())]
            ),
        )
    mixed = [name for name in np.unique(sources) if len(np.unique(labels[sources == name])) == 2]
    chosen = np.isin(sources, mixed) if mixed else np.ones(len(sources), bool)
    return labels[chosen], decisions[chosen], sources[chosen]


def composite_series(
    run: RunData, rule: Callable[[np.ndarray], float], held_out: HeldOut
) -> dict[str, np.ndarray]:
    """Return the decisions (`COMPOSITE_SERIES`,) of series of `SERIES_SLICES` slices without
    hemorrhage, each slice from a different patient, by the name of the composite source.
    """
    single = (run.labels[held_out.slices] == 0) & (run.scan_sizes[run.scans[held_out.slices]] == 1)
    decisions = {}
    for source in np.unique(run.sources[held_out.slices]):
        at = np.flatnonzero(single & (run.sources[held_out.slices] == source))
        one_each = at[np.unique(run.groups[held_out.slices[at]], return_index=True)[1]]
        if len(one_each) < FEWEST_PEOPLE:
            continue
        random = np.random.default_rng(run.seed)
        drawn = [
            random.choice(one_each, SERIES_SLICES, replace=False) for _ in range(COMPOSITE_SERIES)
        ]
        decisions[f"series of {source}"] = np.array(
            [rule(held_out.decisions[chosen]) for chosen in drawn]
        )
    return decisions


def without(held_out: HeldOut, slices: np.ndarray, scans: np.ndarray) -> HeldOut:
    """Return the decisions without those on these slices (positions) and scans (numbers)."""
    of_slices, of_scans = ~np.isin(held_out.slices, slices), ~np.isin(held_out.scans, scans)
    return HeldOut(
        held_out.slices[of_slices],
        held_out.decisions[of_slices],
        held_out.scans[of_scans],
        held_out.scan_decisions[of_scans],
    )


def has_both_classes(run: RunData, held_out: HeldOut) -> bool:
    """Return whether the decisions include slices of both classes."""
    return len(np.unique(run.labels[held_out.slices])) == 2


def named_points(
    run: RunData, architecture: str, held_out: HeldOut, folds: tuple[np.ndarray, np.ndarray]
) -> dict[str, dict[str, PointFigures]]:
    """Return by level, "slice" and "patient", each named operating point with its threshold and its
    performance (`ml.evaluation.metrics.figures_at`).

    The metrics are those of thresholds that were fitted to the answers of the other folds; if folds
    are data sets, to those of other hospitals.

    Args:
        run, architecture, held_out: as `operating_points` takes them, of the whole
            cross-validation.
        folds: of the slices and of the scans in `held_out`.
    """
    labels = run.labels[held_out.slices], run.scan_labels[held_out.scans]
    several = series_of(run)[held_out.scans]
    groups = run.groups[held_out.slices], run.groups[run.first_of_scan[held_out.scans]]
    described: dict[str, dict[str, PointFigures]] = {"slice": {}, "patient": {}}
    for name in POINTS:
        called = [np.zeros(len(level_labels), bool) for level_labels in labels]
        tested = [np.zeros(len(level_labels), bool) for level_labels in labels]
        for fold in np.unique(folds[0]):
            others = without(
                held_out, held_out.slices[folds[0] == fold], held_out.scans[folds[1] == fold]
            )
            if not has_both_classes(run, others):
                continue
            points = operating_points(run, architecture, others, name)
            for level, decisions in enumerate((held_out.decisions, held_out.scan_decisions)):
                in_fold = folds[level] == fold
                called[level][in_fold] = (
                    points[level].platt(decisions[in_fold]) >= points[level].threshold
                )
                tested[level][in_fold] = True
        final = operating_points(run, architecture, held_out, name)
        tested[1] &= several & (labels[1] != UNKNOWN)
        for level, key in enumerate(described):
            chosen = tested[level]
            figures = figures_at(
                labels[level][chosen], called[level][chosen], groups[level][chosen], run.seed
            )
            described[key][name] = PointFigures(threshold=final[level].threshold, **vars(figures))
    return described


def threshold_curves(
    run: RunData, architecture: str, held_out: HeldOut
) -> dict[str, list[CurvePoint]]:
    """Return by level, "slice" and "patient", the sensitivity and specificity of thresholds from 0
    to 1, at most `ml.evaluation.curves.CURVE_POINTS` of them, ascending; empty if a class is
    missing.

    The answers are held out, but the calibration is fitted to all of them. The metrics of
    `named_points` come from held-out calibrations, so they show what to expect elsewhere.
    """
    scans = held_out.scans[
        series_of(run)[held_out.scans] & (run.scan_labels[held_out.scans] != UNKNOWN)
    ]
    points = operating_points(run, architecture, held_out)
    return {
        "slice": threshold_curve(run.labels[held_out.slices], points[0].platt(held_out.decisions)),
        "patient": threshold_curve(
            run.scan_labels[scans],
            points[1].platt(held_out.scan_decisions[np.isin(held_out.scans, scans)]),
        ),
    }
