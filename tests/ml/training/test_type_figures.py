"""How types of bleeding are judged: by fits that never saw the group, and with no AUROC of a few
patients.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import ml.training.experiment
from ml.artifacts.card import TypeFigures, TypeMetrics, TypeScore
from ml.catalogue import BLEEDING_TYPES
from ml.datasets.examples import Example
from ml.datasets.type_labels import KnownTypes
from ml.figures import Estimate
from ml.models.contract import FitTask
from ml.training import type_figures
from ml.training.cross_validation import OutOfFold, cross_validate
from ml.training.experiment import Experiment
from ml.training.type_figures import distinguished_types, figures_of_types, write_types
from tests.ml.oracle import experiment_of, fit_with, truth

PATIENTS = 40  # of two slices; every second one bleeds, in its second slice


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Twelve patients with epidural, eight with subdural, one of them also with intraventricular
    bleeding; the maps tell which.
    """
    types = np.zeros((2 * PATIENTS, 5), np.int8)
    bleeding = np.arange(3, 2 * PATIENTS, 4)
    types[bleeding[:12], 0] = 1
    types[bleeding[12:], 1] = 1
    types[bleeding[19], 4] = 1

    known = KnownTypes(types, np.maximum(types[::2], types[1::2]))

    def describe(task: FitTask) -> np.ndarray:
        # so many channels that the penalty hardly holds them back
        return np.tile(types, 40).astype(np.float32)

    monkeypatch.setattr(
        ml.training.experiment,
        "fit_of",
        lambda architecture: fit_with(truth, [], describe=describe),
    )
    return experiment_of(
        [0, 0, 0, 1] * (PATIENTS // 2), tmp_path, [n // 2 for n in range(2 * PATIENTS)], types=known
    )


def judge(experiment: Experiment, folder: Path) -> OutOfFold:
    return cross_validate(experiment, 4, 1, folder, lambda stage, share, metrics: None)


def test_a_type_of_ten_patients_has_figures_and_one_of_fewer_each_patients_place(
    experiment: Experiment, tmp_path: Path
) -> None:
    result = figures_of_types(experiment, judge(experiment, tmp_path), ("epidural", "subdural"))
    assert list(result) == list(BLEEDING_TYPES)
    epidural, subdural, ventricles = (
        result["epidural"],
        result["subdural"],
        result["intraventricular"],
    )
    assert epidural.given and (epidural.slices, epidural.of_slices) == (12, 80)
    assert (epidural.patients, epidural.of_patients) == (12, 40)
    assert (
        epidural.slice.auroc.value == 1.0 == epidural.patient.auroc.value
        and epidural.scores is None
    )
    assert epidural.patient.auroc.n == 40 and epidural.patient.auroc_among_bleeding.n == 20
    assert subdural.patients == 8 and subdural.slice is None is subdural.patient
    probabilities = [score.probability for score in subdural.scores]
    assert len(probabilities) == 8 and probabilities == sorted(probabilities, reverse=True)
    assert subdural.scores[0].rank == 1 and all(
        1 <= score.rank <= score.of == 40 for score in subdural.scores
    )
    assert not ventricles.given and ventricles.patients == 1
    assert ventricles.scores == [TypeScore(None, None, 0)], "no fold could learn it"
    assert result["subarachnoid"].patients == 0 and result["subarachnoid"].scores == []


def test_the_types_of_a_held_out_patient_never_reach_the_fit_that_answers_for_it(
    experiment: Experiment, tmp_path: Path
) -> None:
    expected = judge(experiment, tmp_path / "as it is")
    fold = expected.slices.folds[0]
    held = fold == 2
    assert experiment.types is not None
    turned = experiment.types.slices.copy()
    turned[held] = 1 - turned[held]
    other = judge(
        Experiment(**{**vars(experiment), "types": KnownTypes(turned, experiment.types.scans)}),
        tmp_path / "turned",
    )
    np.testing.assert_array_equal(other.slices.types[0, held], expected.slices.types[0, held])
    assert not np.array_equal(
        other.slices.types[0, ~held], expected.slices.types[0, ~held], equal_nan=True
    ), "others learn from them"


def test_types_change_no_other_answer_and_a_run_without_them_has_none(
    experiment: Experiment, tmp_path: Path
) -> None:
    with_types = judge(experiment, tmp_path / "with")
    without = judge(Experiment(**{**vars(experiment), "types": None}), tmp_path / "without")
    np.testing.assert_array_equal(with_types.scans.probabilities, without.scans.probabilities)
    assert np.isnan(without.slices.types).all()
    assert figures_of_types(Experiment(**{**vars(experiment), "types": None}), without, ()) == {}


def example(number: int, types: frozenset[str] | None) -> Example:
    return Example(
        Path("x.png"), f"{number}.png", None, f"p{number // 2}", number % 2, "", "set", types=types
    )


def test_every_answer_stands_in_a_table_beside_what_is_known(
    experiment: Experiment, tmp_path: Path
) -> None:
    out_of_fold = judge(experiment, tmp_path)
    examples = [example(number, None) for number in range(2 * PATIENTS)]
    write_types(tmp_path / "types.csv", examples, experiment, out_of_fold)
    with (tmp_path / "types.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["level"] for row in rows] == ["slice"] * 80 + ["patient"] * 40
    bleeding = rows[3]
    assert (
        bleeding["patient"],
        bleeding["filename"],
        bleeding["epidural"],
        bleeding["subdural"],
    ) == ("p1", "3.png", "1", "0")
    assert (
        float(bleeding["epidural_probability"]) == out_of_fold.slices.types[0, 3, 0]
        and bleeding["intraventricular_probability"] == ""
    )
    assert rows[81]["filename"] == "" and rows[81]["epidural"] == "1"


def test_types_are_shown_only_where_the_lower_end_of_the_interval_is_above_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def figures_with(low: float | None) -> TypeFigures:
        same = Estimate(0.7, low, 0.9, 40)
        metrics = TypeMetrics(auroc=same, ece=same, auroc_among_bleeding=same)
        counts = {"slices": 40, "of_slices": 80, "patients": 20, "of_patients": 40}
        return TypeFigures(given=True, slice=metrics, patient=metrics, **counts)

    result = {
        "epidural": figures_with(0.45),
        "subdural": figures_with(0.51),
        "subarachnoid": figures_with(None),
        "intraventricular": TypeFigures(
            given=True, slices=2, of_slices=80, patients=1, of_patients=40, scores=[]
        ),
    }
    monkeypatch.setattr(type_figures, "figures_of_types", lambda *given: result)
    assert distinguished_types(None, None) == ("subdural",)  # type: ignore[arg-type]
