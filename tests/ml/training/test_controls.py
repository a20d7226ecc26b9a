"""The controls, with architectures of which it is known whether they leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ml.training.experiment
from ml.catalogue import ARCHITECTURES
from ml.datasets.examples import UNKNOWN, Example
from ml.evaluation.metrics import auroc
from ml.expected_fits import control_names
from ml.models.contract import FitTask
from ml.training.controls import (
    ControlledRun,
    blocked_because,
    file_facts,
    leak,
    metadata_control,
    permute_between_groups,
    run_controls,
)
from ml.training.cross_validation import cross_validate
from ml.training.progress import TrainingStopped
from tests.ml.oracle import experiment_of, fit_with, truth


def ignore(stage: str, share: float, metrics: object) -> None:
    """Nobody watches."""


def examples_of(folder: Path, n: int) -> list[Example]:
    """n pictures, the odd ones wider: a shortcut."""
    result = []
    for number in range(n):
        width = 40 + 20 * (number % 2)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, width), np.uint8)).save(
            folder / f"{number}.png"
        )
        result.append(
            Example(
                folder / f"{number}.png",
                f"{number}.png",
                number % 2,
                None,
                None,
                "",
                "set",
                width=width,
                height=40,
                mode="L",
            )
        )
    return result


def honest(task: FitTask) -> np.ndarray:
    """Decide what a hash of each picture says, which has nothing to do with labels."""
    return np.sin(1000 * task.images[:, 0, 0, 0])


def patch(monkeypatch: pytest.MonkeyPatch, decide: object, learned: bool = False) -> list[FitTask]:
    tasks: list[FitTask] = []
    monkeypatch.setattr(
        ml.training.experiment, "fit_of", lambda architecture: fit_with(decide, tasks, learned)
    )  # type: ignore[arg-type]
    return tasks


def test_a_model_that_knows_permuted_labels_is_blocked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = patch(monkeypatch, truth)  # it reads the labels of the task itself, as a leak would
    controls = run_controls(
        ControlledRun(experiment_of([0, 1] * 16, tmp_path), examples_of(tmp_path, 32), False, 4),
        tmp_path,
        ignore,
    )
    permuted = controls[0]
    assert permuted.name == "permuted" and permuted.auroc.value == 1.0 and permuted.auroc.n == 20
    assert len(tasks) == 20 * 4, "small sets: every permutation is a whole cross-validation"
    sentence = blocked_because(controls)
    assert sentence is not None and "AUROC of 1.000 (lower 99% bound 1.000, above 0.5)" in sentence


def test_a_model_that_finds_nothing_in_permuted_labels_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patch(monkeypatch, honest)
    controls = run_controls(
        ControlledRun(experiment_of([0, 1] * 16, tmp_path), examples_of(tmp_path, 32), False, 4),
        tmp_path,
        ignore,
    )
    assert controls[0].lower_99 < 0.5 and blocked_because(controls) is None
    assert controls[0].auroc.low < controls[0].auroc.value < controls[0].auroc.high


def test_controls_of_a_fine_tuned_net_cost_a_fit_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = patch(monkeypatch, honest, learned=True)
    experiment = experiment_of([0, 1] * 16, tmp_path, settings={"controls": "all"})
    controls = {
        control.name: control
        for control in run_controls(
            ControlledRun(experiment, examples_of(tmp_path, 32), True, 5), tmp_path, ignore
        )
    }
    assert controls["permuted"].auroc.n == 5
    assert len(tasks) == 5 + 1, "five permutations and the leaked protocol, one fold each"
    assert all((task.masks == 255).all() for task in tasks), "outlines know the true labels"
    assert controls["random_weights"].skipped == (
        "The run itself started from random initial weights."
    )
    assert set(controls) == {"permuted", "metadata", "leaked", "random_weights"}


def test_random_weights_stand_beside_the_run_on_the_same_fold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = patch(monkeypatch, honest, learned=True)
    experiment = replace(
        experiment_of([0, 1] * 16, tmp_path, settings={"controls": "all"}),
        init=tmp_path / "weights.npz",
    )
    out_of_fold = cross_validate(experiment, 5, 1, tmp_path, ignore)
    fitted = len(tasks)
    result = run_controls(
        ControlledRun(experiment, examples_of(tmp_path, 32), True, 5), tmp_path, ignore
    )[-1]
    assert len(tasks) == fitted + 7, "the run's own first fold is kept"
    first = out_of_fold.slices.folds[0] == 0
    own = auroc(out_of_fold.slices.labels[first], out_of_fold.slices.probabilities[0][first])
    assert (
        result.name == "random_weights"
        and result.run_auroc.value == own
        and result.run_auroc.n == first.sum()
    )
    assert f"the first of 5 folds, where the run itself has an AUROC of {own:.3f} (" in result.how


def test_the_setting_decides_which_controls_run() -> None:
    def names(controls: str, learned: bool) -> tuple[str, ...]:
        return control_names({"controls": controls}, learned)

    assert names("cheap", False) == ("permuted", "metadata") and names("cheap", True) == (
        "metadata",
    )
    assert names("none", False) == () and len(names("all", True)) == 4


def test_each_control_is_a_step_of_the_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patch(monkeypatch, honest, learned=True)
    experiment = replace(
        experiment_of([0, 1] * 16, tmp_path, settings={"controls": "all"}),
        init=tmp_path / "weights.npz",
    )
    reported: list[tuple[str, float]] = []
    run_controls(
        ControlledRun(experiment, examples_of(tmp_path, 32), True, 5),
        tmp_path,
        lambda stage, share, metrics: reported.append((stage, share)),
    )
    ends = [
        max(share for stage, share in reported if stage.startswith(f"control {name}"))
        for name in ("permuted", "metadata", "leaked")
    ]
    assert ends == pytest.approx([1 / 4, 2 / 4, 3 / 4], abs=0.04)
    assert [share for _, share in reported] == sorted(share for _, share in reported)


def test_interrupted_controls_continue_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples = examples_of(tmp_path, 32)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    patch(monkeypatch, honest)
    straight = run_controls(
        ControlledRun(experiment_of([0, 1] * 16, tmp_path), examples, False, 4),
        tmp_path / "a",
        ignore,
    )

    def stop(stage: str, share: float, metrics: object) -> None:
        if share > 0.25:
            raise TrainingStopped

    before = patch(monkeypatch, honest)
    with pytest.raises(TrainingStopped):
        run_controls(
            ControlledRun(experiment_of([0, 1] * 16, tmp_path), examples, False, 4),
            tmp_path / "b",
            stop,
        )
    assert 0 < len(before) < 80
    after = patch(monkeypatch, honest)
    continued = run_controls(
        ControlledRun(experiment_of([0, 1] * 16, tmp_path), examples, False, 4),
        tmp_path / "b",
        ignore,
    )
    assert len(before) + len(after) == 80
    assert [replace(c, seconds=0) for c in continued] == [replace(c, seconds=0) for c in straight]


def test_permuted_labels_keep_groups_and_say_nothing_about_places() -> None:
    labels = np.array([0, 0, 1, 0] * 50 + [0, 0, 0, 0] * 50 + [UNKNOWN, 0])
    groups = np.array([n // 4 for n in range(400)] + [100, 100])
    permuted = permute_between_groups(labels, groups, np.random.default_rng(0))
    assert (
        permuted[400] == UNKNOWN and (labels[:400] == np.array([0, 0, 1, 0] * 50 + [0] * 200)).all()
    )
    per_group = permuted[:400].reshape(100, 4).sum(axis=1)
    assert set(per_group) == {0, 1} and 49 <= per_group.sum() <= 50, (
        "as many groups bleed as before, in one slice each"
    )
    assert 15 < per_group[:50].sum() < 35, "other groups than before"
    places = permuted[:400].reshape(100, 4).sum(axis=0)
    assert (places > 3).all(), "blood is no longer always in the third slice"


def test_single_pictures_are_permuted_as_they_are() -> None:
    labels = np.array([0, 1] * 10)
    permuted = permute_between_groups(labels, np.arange(20), np.random.default_rng(1))
    assert permuted.sum() == 10 and permuted.tolist() != labels.tolist()


def test_a_shortcut_in_the_files_is_found(tmp_path: Path) -> None:
    examples = examples_of(tmp_path, 24)
    facts = np.array([file_facts(example) for example in examples])
    assert facts[:, 1].tolist() == [40.0, 60.0] * 12 and (facts[:, 3] == 0).all()
    labels = np.array([0, 1] * 12)
    result = metadata_control(facts, labels, np.arange(24).astype(str), 4, 0)
    assert result.auroc.value == 1.0 and result.accuracy.value == 1.0
    same = metadata_control(np.ones((24, 3)), labels, np.arange(24).astype(str), 4, 0)
    assert same.auroc.value == pytest.approx(0.5, abs=0.1)


def test_color_is_a_fact_of_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (100, 100, 151)).save(tmp_path / "blue.png")
    example = Example(
        tmp_path / "blue.png", "blue.png", 0, None, None, "", "set", width=10, height=10, mode="RGB"
    )
    assert file_facts(example)[1:4] == [10.0, 10.0, pytest.approx(51 / 255)]


def test_the_leaked_protocol_puts_copies_of_a_picture_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rich = np.random.default_rng(0).random((12, 32, 32, 1)).astype(np.float32)
    experiment = replace(experiment_of([0, 1] * 6, tmp_path), images=rich)
    leaked = leak(experiment, 10, tmp_path / "leaked", ignore)
    assert leaked.images.shape == (120, 32, 32, 1) and leaked.labels.tolist() == [0, 1] * 60
    assert np.array_equal(leaked.images[:12], rich) and not np.array_equal(
        leaked.images[12:24], rich
    )
    assert len(set(leaked.groups)) == 120

    def recall(task: FitTask) -> np.ndarray:
        """Decide what the likeliest training picture was: worthless between patients, perfect
        between copies.
        """
        flat = task.images.reshape(len(task.images), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        alike = flat @ flat[task.train].T
        alike[task.train, np.arange(len(task.train))] = -1
        return np.where(task.labels[task.train][alike.argmax(axis=1)] == 1, 1.0, -1.0)

    smooth = np.repeat(
        np.repeat(np.random.default_rng(1).random((12, 4, 4, 1)), 8, axis=1), 8, axis=2
    ).astype(np.float32)
    experiment = replace(experiment, images=smooth, settings={"controls": "all"})
    patch(monkeypatch, recall)
    controls = {
        c.name: c
        for c in run_controls(
            ControlledRun(experiment, examples_of(tmp_path, 12), False, 3), tmp_path, ignore
        )
    }
    assert controls["leaked"].auroc.value > 0.8 > 0.65 > controls["permuted"].auroc.value
    assert controls["leaked"].auroc.n == 120


def test_scans_of_a_series_architecture_are_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ARCHITECTURES,
        "reader",
        replace(ARCHITECTURES["alexnet_svm"], name="reader", reads="series"),
    )
    experiment = experiment_of([0, 1, 0, 0], tmp_path, scans=[0, 0, 1, 1], architecture="reader")
    leaked = leak(experiment, 3, tmp_path / "leaked", ignore)
    assert leaked.scans.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert leaked.labels.tolist() == [0, 1, 0, 0] * 3 and leaked.scan_labels.tolist() == [1, 0] * 3


def test_labels_of_whole_scans_are_permuted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = patch(monkeypatch, honest)
    given_scan_labels = {8 + scan: scan % 2 for scan in range(8)}
    experiment = experiment_of(
        [0, 1] * 8 + [UNKNOWN] * 16,
        tmp_path,
        [n // 2 for n in range(32)],
        {"controls": "cheap"},
        given_scan_labels=given_scan_labels,
    )
    run_controls(ControlledRun(experiment, examples_of(tmp_path, 16), False, 2), tmp_path, ignore)
    result = [dict(task.given_scan_labels) for task in tasks]
    assert all(set(one) == set(given_scan_labels) and sum(one.values()) == 4 for one in result)
    assert any(one != given_scan_labels for one in result)
    assert not leak(experiment, 2, tmp_path, ignore).given_scan_labels, (
        "of scans without labeled slices no copy is made"
    )
