"""The simulation of a worklist: exact waits by hand, what no order can change, and who gains and
who pays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ml.__main__ import main
from ml.errors import SettingError
from ml.evaluation.answers import write_answers
from ml.evaluation.worklist import (
    FIRST_COME,
    ORDERS,
    Department,
    Scans,
    Simulation,
    scans_of,
    simulate,
    waits,
)
from ml.figures import Estimate
from tests.ml.conftest import metrics_of

BY_RISK, THEN_UNCERTAINTY = "by risk", "by risk, then uncertainty"


def of(labels: list[int], probabilities: list[float], threshold: float = 0.5) -> Scans:
    given = np.array(probabilities)
    return Scans(np.array(labels), given, given >= threshold, "made up")


PERFECT = of([1, 0], [0.9, 0.1])
USELESS = of([1, 0], [0.5, 0.5])


def metric(value: float | None, n: int = 0) -> Estimate:
    return Estimate(value, None, None, n, "one class is missing" if value is None else None)


def median_of(result: Simulation, order: str, group: str, what: str) -> float:
    output = result.minutes[order][group][what]["median"].value
    assert output is not None
    return output


def test_one_reader_takes_four_scans_in_the_order_that_is_asked_for() -> None:
    arrivals, minutes = np.array([0.0, 1, 2, 3]), np.full(4, 10.0)
    scans = of([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9])

    def waited(name: str) -> list[float]:
        return waits(arrivals, minutes, ORDERS[name](scans), 1).tolist()

    assert waited(FIRST_COME) == [0, 9, 18, 27]
    assert waited(BY_RISK) == [0, 29, 18, 7], (
        "the first is begun before the others are there, and nobody is interrupted"
    )
    assert waited(THEN_UNCERTAINTY) == [0, 29, 8, 17], (
        "of those called positive the one nearest to the threshold goes first"
    )


def test_a_worklist_that_runs_empty_waits_for_the_next_scan() -> None:
    assert waits(np.array([5.0, 30, 31]), np.array([10.0, 4, 4]), np.arange(3), 1).tolist() == [
        0,
        0,
        3,
    ]


def test_two_readers_who_are_both_idle_take_two_scans_at_once() -> None:
    assert waits(
        np.array([0.0, 20, 20, 21]), np.array([1.0, 5, 7, 5]), np.arange(4), 2
    ).tolist() == [0, 0, 0, 4]


def test_of_equals_the_first_to_arrive_goes_first() -> None:
    equal = of([0, 1, 0], [0.5, 0.5, 0.5])
    assert all(order(equal).tolist() == [0, 1, 2] for order in ORDERS.values())


@pytest.mark.parametrize("readers", [1, 3])
def test_where_every_scan_takes_as_long_no_order_changes_when_readers_begin(readers: int) -> None:
    rng = np.random.default_rng(5)
    arrivals = np.sort(rng.uniform(0, 600, 200))
    minutes = np.full(200, 3.0 * readers + 1)
    begun = [
        np.sort(arrivals + waits(arrivals, minutes, order, readers))
        for order in (np.arange(200), rng.permutation(200))
    ]

    np.testing.assert_allclose(begun[0], begun[1])


@pytest.mark.parametrize("readers", [1, 3])
def test_no_scan_is_read_before_it_arrives_and_at_most_one_per_reader(
    readers: int,
) -> None:
    rng = np.random.default_rng(7)
    arrivals = np.sort(rng.uniform(0, 600, 150))
    minutes = rng.lognormal(2, 0.5, 150)
    waited = waits(arrivals, minutes, rng.permutation(150), readers)
    begun = arrivals + waited

    assert (waited >= 0).all()
    for moment in begun:
        assert ((begun <= moment) & (moment + 1e-9 < begun + minutes)).sum() <= readers


def test_the_same_seed_gives_the_same_answer_and_another_does_not() -> None:
    department = Department(repetitions=20)
    assert simulate(PERFECT, department, seed=3) == simulate(PERFECT, department, seed=3)
    assert (
        simulate(PERFECT, department, seed=3).minutes
        != simulate(PERFECT, department, seed=4).minutes
    )


def test_a_model_that_knows_brings_hemorrhages_forward_and_the_others_pay() -> None:
    result = simulate(PERFECT, Department(repetitions=50, arrivals_per_hour=11))

    first_come = median_of(result, FIRST_COME, "hemorrhage", "wait")
    assert median_of(result, BY_RISK, "hemorrhage", "wait") < 0.5 * first_come
    assert median_of(result, BY_RISK, "hemorrhage", "sooner") > 0
    assert result.minutes[BY_RISK]["no hemorrhage"]["later"]["95th percentile"].low > 0
    assert result.minutes[BY_RISK]["hemorrhage, missed"]["wait"]["median"].n == 0, (
        "this model misses none"
    )


def test_a_model_without_skill_changes_no_waiting_time() -> None:
    result = simulate(USELESS, Department(repetitions=10))

    for group, which_way in (("hemorrhage", "sooner"), ("no hemorrhage", "later")):
        for summary in ("median", "95th percentile"):
            moved = result.minutes[BY_RISK][group][which_way][summary]
            assert (moved.low, moved.value, moved.high) == (0, 0, 0)


def test_a_missed_hemorrhage_waits_longer_than_first_in_first_out() -> None:
    result = simulate(
        of([1, 1, 0, 0], [0.9, 0.0, 0.2, 0.3]),
        Department(repetitions=50, arrivals_per_hour=11, prevalence=0.2),
    )

    missed = result.minutes[BY_RISK]["hemorrhage, missed"]["sooner"]
    assert missed["95th percentile"].low <= 0 and missed["median"].low < 0


def test_a_day_has_as_many_scans_and_hemorrhages_as_its_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    days: list[tuple[int, float]] = []

    def count(
        arrivals: np.ndarray, minutes: np.ndarray, order: np.ndarray, readers: int
    ) -> np.ndarray:
        days.append((len(arrivals), float(minutes.mean())))
        return np.zeros(len(arrivals))

    monkeypatch.setattr("ml.evaluation.worklist.waits", count)
    simulate(
        PERFECT,
        Department(arrivals_per_hour=20, hours=24, minutes_a_scan=6, spread=0.5, repetitions=100),
    )

    n, minutes = np.mean(days, axis=0)
    assert n == pytest.approx(480, rel=0.02) and minutes == pytest.approx(6, rel=0.02)


def test_without_any_arrival_or_any_hemorrhage_there_is_no_figure_and_a_dash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_run(tmp_path)
    assert main(["worklist", str(tmp_path), "--prevalence=0", "--repetitions=2"]) == 0
    assert (
        "  hemorrhage: waits median –, 95th percentile –; sooner by median –, 95th percentile –\n"
        in capsys.readouterr().out
    )


def write_run(folder: Path) -> None:
    shared = {"level": "patient", "filename": "", "predicted": 1, "overlap": ""}
    rows = [
        {**shared, "dataset": "a", "patient": "p1", "label": 1, "repeat": 0, "probability": "0.9"},
        {**shared, "dataset": "a", "patient": "p1", "label": 1, "repeat": 1, "probability": "0.8"},
        {
            **shared,
            "dataset": "a",
            "patient": "p2",
            "label": 0,
            "repeat": 0,
            "probability": "0.3",
            "predicted": 0,
        },
        {**shared, "dataset": "b", "patient": "p3", "label": 1, "repeat": 0, "probability": "0.7"},
        {
            **shared,
            "dataset": "b",
            "patient": "p4",
            "label": 1,
            "repeat": 0,
            "probability": "0.6",
            "overlap": 1,
        },
    ]
    write_answers(folder / "predictions.csv", rows)


def test_the_scans_are_the_first_answers_to_patients_that_training_had_not_seen(
    tmp_path: Path,
) -> None:
    write_run(tmp_path)

    everyone, of_a = scans_of(tmp_path), scans_of(tmp_path, "a")

    assert (
        everyone.labels.tolist(),
        everyone.probabilities.tolist(),
        everyone.called.tolist(),
    ) == (
        [1, 0, 1],
        [0.9, 0.3, 0.7],
        [True, False, True],
    )
    assert of_a.labels.tolist() == [1, 0]


@pytest.mark.parametrize("dataset", ["b", "c"])
def test_a_data_set_without_both_kinds_of_scans_is_a_sentence(dataset: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(
        SettingError, match=r"Scans with and without hemorrhage are needed; .* of a, b\."
    ):
        scans_of(tmp_path, dataset)


def test_of_a_model_folder_scans_are_made_that_have_the_figures_of_its_card(
    tiny_model: Callable[..., Path],
) -> None:
    figures = metrics_of(
        0.9,
        auroc=metric(0.875, 490),
        sensitivity=metric(0.7, 240),
        specificity=metric(0.88, 250),
    )
    without = metrics_of(
        0.9, auroc=metric(None), sensitivity=metric(0.9, 25), specificity=metric(None)
    )
    model = tiny_model(
        patient_metrics=figures, patient_metrics_by_dataset={"mixed": figures, "bleeding": without}
    )

    scans = scans_of(model, "mixed")

    assert np.bincount(scans.labels).tolist() == [250, 240]
    assert roc_auc_score(scans.labels, scans.probabilities) == pytest.approx(0.875, abs=0.005)
    assert scans.called[scans.labels == 1].mean() == pytest.approx(0.7) and scans.called[
        scans.labels == 0
    ].mean() == pytest.approx(0.12)
    assert (
        scans.probabilities[(scans.labels == 1) & scans.called].min()
        > scans.probabilities[(scans.labels == 1) & ~scans.called].max()
    )
    assert "a model folder holds no individual predictions" in scans.source
    with pytest.raises(SettingError, match="the model's card has no patient-level AUROC for them"):
        scans_of(model, "bleeding")
    with pytest.raises(
        SettingError, match="has no metrics of elsewhere; it has those of mixed, bleeding"
    ):
        scans_of(model, "elsewhere")


def test_the_command_says_and_writes_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    settings = [
        "worklist",
        str(tmp_path),
        "--dataset=a",
        "--readers=2",
        "--arrivals-per-hour=22",
        "--spread=0",
        "--repetitions=30",
        "--seed=5",
    ]

    assert main([*settings, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert main(settings) == 0
    output = capsys.readouterr().out

    wait = written["minutes"][BY_RISK]["hemorrhage"]["wait"]["median"]
    assert written["settings"]["readers"] == 2 and written["load"] == pytest.approx(22 * 5 / 60 / 2)
    assert (
        f"hemorrhage: waits median {wait['value']:.1f} ({wait['low']:.1f} to {wait['high']:.1f})"
        in output.partition("by risk:")[2]
    )
    assert all(sentence in output for sentence in written["assumptions"]) and "simulation" in output


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("--readers=0", "readers must lie between 1 and 1000, not 0."),
        ("--prevalence=1.5", "prevalence must lie between 0 and 1, not 1.5."),
        ("--spread=nan", "spread must lie between 0 and 3, not nan."),
    ],
)
def test_a_department_that_cannot_be_is_a_sentence(
    setting: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worklist", "starter-series", setting]) == 2
    assert capsys.readouterr().err == sentence + "\n"


def test_more_scans_than_can_be_read_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    assert main(["worklist", str(tmp_path), "--arrivals-per-hour=13", "--repetitions=2"]) == 0
    assert "the worklist grows all day" in capsys.readouterr().out
