"""Figures on arrays small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

import ml.evaluation.metrics
from ml.evaluation.calibration import (
    Platt,
    fit_platt,
    predictive_values_outside_band,
    zones,
)
from ml.evaluation.metrics import (
    auroc,
    auroc_within,
    confusion,
    figures_at,
    lower_bound_of_mean,
    metrics_with_intervals,
    paired_differences,
    roc_points,
    undefined_metrics,
    wilson,
)
from ml.figures import BandFigures, Confusion, Estimate, Share, undefined

LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
PROBABILITIES = np.array([0.9, 0.8, 0.6, 0.3, 0.7, 0.4, 0.2, 0.1])
OWN_GROUPS = np.arange(8)


def values(
    labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    return {
        name: entry.value
        for name, entry in metrics_with_intervals(
            labels, probabilities, predicted, np.arange(len(labels)), 0
        ).items()
    }


def test_counts_become_the_textbook_figures() -> None:
    result = values(LABELS, PROBABILITIES, PROBABILITIES >= 0.5)
    assert confusion(LABELS, PROBABILITIES >= 0.5) == Confusion(tp=3, fp=1, tn=3, fn=1)
    assert (
        result["accuracy"]
        == result["sensitivity"]
        == result["specificity"]
        == result["ppv"]
        == result["npv"]
        == result["f1"]
        == 0.75
    )
    # Of the 16 pairs of a positive and a negative 13 are in order: 0.6 < 0.7, 0.3 < 0.7 and 0.3 <
    # 0.4 are not.
    assert result["auroc"] == 13 / 16
    # Precision at each positive, from above: 1/1, 2/2, 3/4, 4/6.
    assert result["auprc"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 6) / 4)
    assert result["brier"] == pytest.approx(
        (0.01 + 0.04 + 0.16 + 0.49 + 0.49 + 0.16 + 0.04 + 0.01) / 8
    )


def test_calibration_error_is_the_weighted_gap_of_each_tenth() -> None:
    labels, probabilities = np.array([1, 0, 1, 1]), np.array([0.62, 0.68, 0.91, 0.95])
    # Sixties: 1 positive where 1.30 were expected; nineties: 2 where 1.86 were.
    assert values(labels, probabilities, probabilities >= 0.5)["ece"] == pytest.approx(
        (0.30 + 0.14) / 4
    )


def test_ties_count_half() -> None:
    assert auroc(np.array([1, 0]), np.array([0.5, 0.5])) == 0.5
    assert auroc(np.array([1, 1, 0, 0]), np.array([0.5, 0.9, 0.5, 0.1])) == 3.5 / 4


def test_ranking_figures_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 400)
    scores = np.round(labels * 0.2 + random.random(400) * 0.8, 2)
    result = values(labels, scores, scores > 0.5)
    assert result["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert result["auprc"] == pytest.approx(average_precision_score(labels, scores))


def test_a_figure_that_one_class_makes_undefined_is_null_with_a_reason() -> None:
    result = metrics_with_intervals(
        np.ones(3), np.array([0.2, 0.7, 0.9]), np.array([False, True, True]), np.arange(3), 0
    )
    assert result.auroc == Estimate(None, None, None, 3, "one class is missing")
    assert result.specificity.value is None
    assert result.sensitivity.value == pytest.approx(2 / 3)


def test_no_image_at_all_is_no_error() -> None:
    empty = np.zeros(0)
    assert (
        metrics_with_intervals(empty, empty, empty.astype(bool), empty, 0).accuracy.reason
        == "there is no image"
    )


def test_same_seed_gives_the_same_interval_around_the_figure() -> None:
    first, again = (
        metrics_with_intervals(LABELS, PROBABILITIES, PROBABILITIES >= 0.5, OWN_GROUPS, seed=5)
        for _ in range(2)
    )
    assert first == again
    assert first.auroc.low < first.auroc.value < first.auroc.high


def test_images_of_one_group_are_drawn_together() -> None:
    """Fifty copies of each image are no more evidence than one: with the copies grouped the
    interval is as wide.
    """
    copies = 50
    labels, probabilities = np.repeat(LABELS, copies), np.repeat(PROBABILITIES, copies)
    single = metrics_with_intervals(LABELS, PROBABILITIES, PROBABILITIES >= 0.5, OWN_GROUPS, 1)
    grouped = metrics_with_intervals(
        labels, probabilities, probabilities >= 0.5, np.repeat(OWN_GROUPS, copies), 1
    )
    naive = metrics_with_intervals(
        labels, probabilities, probabilities >= 0.5, np.arange(len(labels)), 1
    )
    width = {
        name: entry.accuracy.high - entry.accuracy.low
        for name, entry in (("s", single), ("g", grouped), ("n", naive))
    }
    assert width["g"] == pytest.approx(width["s"])
    assert width["n"] < width["s"] / 4


def test_platt_is_the_logistic_function_of_the_decision() -> None:
    platt = Platt(slope=2.0, offset=-1.0)
    assert platt(np.array([0.5]))[0] == 0.5
    assert platt(np.array([1.0]))[0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert platt(np.array([-1e6, 1e6])).tolist() == [0.0, 1.0]


def test_calibration_finds_the_curve_that_made_the_labels() -> None:
    random = np.random.default_rng(0)
    decisions = random.normal(0, 2, 40_000)
    labels = (random.random(len(decisions)) < Platt(1.5, -0.7)(decisions)).astype(int)
    fitted = fit_platt(labels, decisions)
    assert fitted.slope == pytest.approx(1.5, abs=0.05)
    assert fitted.offset == pytest.approx(-0.7, abs=0.05)


def test_calibration_of_separable_decisions_stays_finite() -> None:
    """Platt's targets for two images a class are 3/4 and 1/4, so the log odds at the decisions +1
    and -1 are +-ln 3.
    """
    fitted = fit_platt(np.array([0, 0, 1, 1]), np.array([-1.0, -1.0, 1.0, 1.0]))
    assert fitted.slope == pytest.approx(np.log(3), abs=1e-6)
    assert fitted.offset == pytest.approx(0, abs=1e-6)


def test_calibration_never_turns_a_ranking_round() -> None:
    assert fit_platt(np.array([1, 1, 0, 0]), np.array([-2.0, -1.0, 1.0, 2.0])).slope > 0


def test_calibration_of_equal_decisions_is_the_share_of_positives() -> None:
    fitted = fit_platt(np.array([1, 0, 0, 0]), np.full(4, 3.0))
    assert fitted(np.array([3.0]))[0] == pytest.approx((2 / 3 + 3 * 1 / 5) / 4, abs=1e-3)


def test_roc_runs_from_corner_to_corner() -> None:
    assert roc_points(np.array([1, 0]), np.array([0.9, 0.1])) == [[0, 0], [0, 1], [1, 1]]
    many = roc_points(np.arange(1000) % 2, np.linspace(0, 1, 1000))
    assert len(many) == 200 and many[0] == [0, 0] and many[-1] == [1, 1]
    assert np.all(np.diff(np.array(many), axis=0) >= 0)


def test_repeats_are_averaged_and_draw_the_same_groups() -> None:
    worse = PROBABILITIES[::-1]
    both = metrics_with_intervals(
        LABELS,
        np.stack([PROBABILITIES, worse]),
        np.stack([PROBABILITIES >= 0.5, worse >= 0.5]),
        OWN_GROUPS,
        seed=1,
    )
    # The second repeat ranks everything the other way round.
    assert both.auroc.value == pytest.approx(
        (13 / 16 + 3 / 16) / 2
    ) and both.accuracy.value == pytest.approx((0.75 + 0.25) / 2)
    assert both.auroc.low == pytest.approx(0.5) and both.auroc.high == pytest.approx(0.5), (
        "what one gains the other loses"
    )
    twice = metrics_with_intervals(
        LABELS,
        np.stack([PROBABILITIES] * 2),
        np.stack([PROBABILITIES >= 0.5] * 2),
        OWN_GROUPS,
        seed=1,
    )
    assert twice == metrics_with_intervals(
        LABELS, PROBABILITIES, PROBABILITIES >= 0.5, OWN_GROUPS, seed=1
    )


def test_a_large_set_is_weighed_in_chunks_with_the_same_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = metrics_with_intervals(LABELS, PROBABILITIES, PROBABILITIES >= 0.5, OWN_GROUPS, seed=1)
    monkeypatch.setattr(ml.evaluation.metrics, "MOST_WEIGHTS", 24)
    chunked = metrics_with_intervals(
        LABELS, PROBABILITIES, PROBABILITIES >= 0.5, OWN_GROUPS, seed=1
    )
    # sums of other lengths round otherwise
    for (name, one), (_, other) in zip(chunked.items(), whole.items(), strict=True):
        assert vars(one) == pytest.approx(vars(other)), name


def test_ranking_within_folds_does_not_hang_on_how_folds_compare() -> None:
    labels, folds = np.array([0, 0, 1, 1] * 10), np.array([0, 1] * 20)
    scores = np.where(folds == 0, 0.5 + 0.1 * labels, 0.1 + 0.1 * labels)
    groups = np.arange(40) // 2
    pooled = auroc(labels, scores)
    assert pooled == 0.75
    result = auroc_within(
        labels, np.stack([scores, scores]), np.stack([folds, np.zeros(40)]), groups, 0
    )
    assert (
        result.value == (1 + pooled) / 2
        and result.low <= result.value <= result.high
        and result.n == 40
    )
    apart = auroc_within(labels, scores[None], labels[None], groups, 0)
    assert apart.value is None and apart.reason, "no fold holds both classes"


def test_a_paired_difference_cancels_what_is_hard_for_both() -> None:
    called = PROBABILITIES >= 0.5
    none = paired_differences(
        LABELS, (PROBABILITIES, called), (PROBABILITIES, called), OWN_GROUPS, seed=0
    )
    assert all(entry.value == entry.low == entry.high == 0 for _, entry in none.items())
    perfect = LABELS * 0.8 + 0.1
    better = paired_differences(
        LABELS, (PROBABILITIES, called), (perfect, perfect >= 0.5), OWN_GROUPS, seed=0
    )
    assert better.auroc.value == pytest.approx(3 / 16) and better.accuracy.value == pytest.approx(
        0.25
    )
    assert 0 <= better.auroc.low < 3 / 16 < better.auroc.high


def test_the_lower_bound_of_a_mean_is_student_s() -> None:
    # Mean 0.5, standard error 0.1 / sqrt(5); the 99% quantile of t with 4 degrees of freedom is
    # 3.747 (any printed table).
    values = 0.5 + 0.1 * np.array([-1, -1, 0, 1, 1])
    assert lower_bound_of_mean(values.tolist()) == pytest.approx(
        0.5 - 3.747 * 0.1 / np.sqrt(5), abs=1e-4
    )
    assert lower_bound_of_mean([0.9]) == -np.inf


def test_a_figure_without_images_says_why() -> None:
    nothing = metrics_with_intervals(
        np.zeros(0), np.zeros(0), np.zeros(0, bool), np.zeros(0), seed=0
    )
    assert nothing.accuracy == undefined("there is no image")
    assert undefined_metrics("all were seen").auroc == undefined("all were seen")


def test_trust_is_counted_outside_the_band() -> None:
    zone = zones(PROBABILITIES, 0.3, 0.7)
    assert zone.tolist() == [1, 1, 0, 0, 1, 0, -1, -1]
    result = predictive_values_outside_band(LABELS, zone)
    assert result == BandFigures(npv=Share(1.0, 2), ppv=Share(2 / 3, 3), uncertain=Share(3 / 8, 8))
    assert predictive_values_outside_band(LABELS, np.zeros(8)).ppv == Share(None, 0)


def test_few_scans_hardly_move_a_calibration_from_its_prior_and_many_do() -> None:
    prior = Platt(2.0, -1.0)
    random = np.random.default_rng(0)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        decisions = random.normal(0, 2, n)
        return (random.random(n) < Platt(0.5, 1.0)(decisions)).astype(int), decisions

    few, many = fit_platt(*drawn(4), prior), fit_platt(*drawn(4000), prior)
    assert abs(few.slope - 2.0) < 1.2 and abs(few.offset + 1.0) < 1.2
    assert many.slope == pytest.approx(0.5, abs=0.08) and many.offset == pytest.approx(
        1.0, abs=0.15
    )


def test_a_prior_does_not_spoil_the_level_of_decisions_that_rank_the_wrong_way_round() -> None:
    random = np.random.default_rng(0)
    decisions = random.normal(-8, 2, 1000)
    labels = (random.random(1000) < Platt(0.9, 7.2)(-16 - decisions)).astype(int)
    fitted = fit_platt(labels, decisions, Platt(1.0, 8.0))
    assert fitted.slope > 0
    assert fitted(decisions).mean() == pytest.approx(labels.mean(), abs=0.05)


def test_a_prior_holds_whatever_unit_the_decisions_have() -> None:
    random = np.random.default_rng(0)
    decisions = random.normal(0, 3, 20)
    labels = (random.random(20) < Platt(0.4, 0.0)(decisions)).astype(int)
    plain, scaled = (
        fit_platt(labels, decisions, Platt(0.4, 0.2)),
        fit_platt(labels, decisions * 1000, Platt(0.0004, 0.2)),
    )
    assert scaled.slope * 1000 == pytest.approx(plain.slope, rel=1e-4)
    assert scaled.offset == pytest.approx(plain.offset, abs=1e-4)


def test_the_interval_of_a_share_is_wilson_s() -> None:
    # 5 of 10, as printed in any table: .237 to .763.
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    for count, n in ((0, 7), (3, 10), (10, 10), (950, 1000)):
        by_scipy = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert wilson(count, n) == pytest.approx((by_scipy.low, by_scipy.high), abs=1e-9)


def test_predictive_values_follow_from_sensitivity_specificity_and_prevalence() -> None:
    labels = np.repeat([1, 0], 10)
    called = np.array([True] * 8 + [False] * 2 + [True] * 1 + [False] * 9)
    result = figures_at(labels, called, np.arange(20), 0)
    assert result.sensitivity.value == 0.8 and result.sensitivity.n == 10
    assert result.specificity.value == 0.9
    assert result.ppv["2"].value == pytest.approx(0.016 / (0.016 + 0.098))
    assert result.npv["10"].value == pytest.approx(0.81 / (0.81 + 0.02))
    assert result.ppv["50"].value == pytest.approx(8 / 9)
    for figure in (result.sensitivity, result.ppv["10"], result.npv["50"]):
        assert figure.low is not None and figure.value is not None and figure.high is not None
        assert figure.low <= figure.value <= figure.high


def test_figures_of_one_class_say_why_the_others_are_missing() -> None:
    result = figures_at(np.ones(4), np.ones(4, bool), np.arange(4), 0)
    assert result.sensitivity.value == 1
    assert result.specificity.value is None and result.ppv["2"].reason


def test_a_figure_never_lies_outside_its_interval() -> None:
    """Nearly every bootstrap sample of well calibrated answers is calibrated worse than they."""
    random = np.random.default_rng(3)
    probabilities = random.random((2, 60))
    labels = (random.random(60) < probabilities[0]).astype(int)
    own = (probabilities, probabilities >= 0.5)
    differences = paired_differences(
        labels, own, (probabilities[::-1], own[1][::-1]), np.arange(60), 1
    )
    tiny = metrics_with_intervals(
        [1, 0, 1], np.array([0.9, 0.2, 0.8]), np.array([1, 0, 1]), [0, 1, 2], 1
    )
    whole = metrics_with_intervals(labels, *own, np.arange(60), 1)
    for name, result in (*whole.items(), *tiny.items(), *differences.items()):
        assert result.low is not None and result.value is not None and result.high is not None
        assert result.low <= result.value <= result.high, name
    assert whole.ece.low < whole.ece.value < whole.ece.high and whole.ece.low >= 0
