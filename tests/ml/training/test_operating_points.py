"""Operating points by scan: composite series, folds that are hospitals, and what the card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ml.evaluation.curves import CURVE_POINTS
from ml.models.contract import HeldOut
from ml.named_points import POINTS, point_at
from ml.networks.aggregation import aggregate_scans
from ml.training.experiment import Experiment
from ml.training.operating_points import (
    COMPOSITE_SERIES,
    FEWEST_PEOPLE,
    composite_series,
    named_points,
    operating_points,
    threshold_curves,
    without,
)
from tests.ml.oracle import experiment_of


def an_experiment(folder: Path, singles: int = 200) -> tuple[Experiment, HeldOut]:
    """Return 40 series of ten slices of two hospitals, half of them with blood in three slices, and
    single pictures of a third; and decisions that are higher by two where there is blood.
    """
    random = np.random.default_rng(0)
    labels, scans = [], []
    for scan in range(40):
        labels += [int(scan % 2 and 4 <= number < 7) for number in range(10)]
        scans += [scan] * 10
    labels += [int(number % 4 == 0) for number in range(singles)]
    scans += list(range(40, 40 + singles))
    sources = np.array(["a"] * 200 + ["b"] * 200 + ["singles"] * singles)
    experiment = experiment_of(labels, folder, scans, {"threshold": "balanced"}, sources=sources)
    decisions = random.normal(2.0 * np.array(labels), 0.5)
    every = np.arange(len(labels))
    held = HeldOut(
        every, decisions, np.arange(40 + singles), aggregate_scans(decisions, experiment.scans)
    )
    return experiment, held


def folds_of(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the folds of slices and of scans, where each hospital is one."""
    number = {"a": 0, "b": 1, "singles": 2}
    of_slices = np.array([number[source] for source in experiment.sources])
    return of_slices, of_slices[experiment.first_of_scan]


def test_series_are_made_of_slices_without_hemorrhage_of_many_people(tmp_path: Path) -> None:
    experiment, held = an_experiment(tmp_path)
    made = composite_series(experiment, lambda decisions: float(decisions.max()), held)
    assert list(made) == ["series of singles"]
    assert made["series of singles"].shape == (COMPOSITE_SERIES,)
    negatives = held.decisions[400:][experiment.labels[400:] == 0]
    assert made["series of singles"].max() <= negatives.max()
    few, held = an_experiment(tmp_path, singles=FEWEST_PEOPLE)
    assert composite_series(few, lambda decisions: 0.0, held) == {}, "three quarters are too few"


def test_a_scan_has_a_threshold_of_its_own_above_that_of_a_slice(tmp_path: Path) -> None:
    """The three highest of ten slices are higher than one slice, blood or not."""
    experiment, held = an_experiment(tmp_path)
    of_slices, of_scans = operating_points(experiment, "alexnet_cells", held)

    def decision_at(platt_slope: float, offset: float, threshold: float) -> float:
        return (np.log(threshold / (1 - threshold)) - offset) / platt_slope

    slice_at = decision_at(of_slices.platt.slope, of_slices.platt.offset, of_slices.threshold)
    scan_at = decision_at(of_scans.platt.slope, of_scans.platt.offset, of_scans.threshold)
    assert 0.5 < slice_at < 1.5
    healthy = aggregate_scans(held.decisions[:400], experiment.scans[:400])[::2]
    assert scan_at > np.quantile(healthy, 0.9)


def test_named_points_are_judged_by_thresholds_of_the_other_folds(tmp_path: Path) -> None:
    experiment, held = an_experiment(tmp_path)
    result = named_points(experiment, "alexnet_cells", held, folds_of(experiment))
    assert set(result) == {"slice", "patient"}
    for level in result.values():
        assert set(level) == set(POINTS)
        assert (
            level["sensitive"].threshold
            <= level["balanced"].threshold
            <= level["specific"].threshold
        )
    balanced = result["patient"]["balanced"]
    assert balanced.sensitivity.n == balanced.specificity.n == 20, "series alone"
    assert (balanced.sensitivity.value or 0) >= 0.9 and (balanced.specificity.value or 0) >= 0.9
    assert set(balanced.ppv) == {"2", "10", "50"}
    assert (balanced.ppv["2"].value or 0) <= (balanced.ppv["50"].value or 0)


def test_curves_say_what_any_threshold_found(tmp_path: Path) -> None:
    experiment, held = an_experiment(tmp_path)
    curves = threshold_curves(experiment, "alexnet_cells", held)
    assert set(curves) == {"slice", "patient"}
    for level, curve in curves.items():
        thresholds = [point.threshold for point in curve]
        assert thresholds == sorted(thresholds) and len(curve) <= CURVE_POINTS
        assert (curve[0].threshold, curve[0].sensitivity, curve[0].specificity) == (0, 1, 0)
        assert curve[-1].threshold == 1 and curve[-1].specificity == 1
        points = named_points(experiment, "alexnet_cells", held, folds_of(experiment))[level]
        balanced = points["balanced"]
        result = point_at([vars(point) for point in curve], balanced.threshold)
        assert result["sensitivity"] == pytest.approx(balanced.sensitivity.value, abs=0.15)
        assert result["specificity"] == pytest.approx(balanced.specificity.value, abs=0.15)


def test_decisions_are_taken_out_by_slice_and_by_scan(tmp_path: Path) -> None:
    _, held = an_experiment(tmp_path)
    rest = without(held, np.arange(400), np.arange(40))
    assert rest.slices.min() == 400 and rest.scans.min() == 40
    assert len(rest.decisions) == len(rest.slices) and len(rest.scan_decisions) == len(rest.scans)


def test_a_network_that_reads_scans_itself_makes_no_series(tmp_path: Path) -> None:
    experiment, held = an_experiment(tmp_path)
    _, of_scans = operating_points(experiment, "cnn_lstm", held)
    singles_only = without(held, np.arange(400), np.arange(40))
    of_slices, same = operating_points(experiment, "cnn_lstm", singles_only)
    assert same == of_slices and of_scans != of_slices
    assert of_scans.low <= of_scans.threshold <= of_scans.high
    assert of_scans.platt.slope > 0 and of_scans.threshold == pytest.approx(0.5, abs=0.5)
