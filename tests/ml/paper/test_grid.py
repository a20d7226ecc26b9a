"""The paper's experiment: its cells, that honest and leaked differ in the split alone, and that an
interruption changes nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import ml.cli.commands
import ml.models.features
import ml.training.experiment
from ml.__main__ import main
from ml.artifacts.card import SEEN, Card
from ml.artifacts.folder import write_model
from ml.datasets.read import Dataset, read_dataset
from ml.datasets.seen_images import seen_json
from ml.errors import DatasetError, SettingError
from ml.evaluation.result_tables import COLUMNS
from ml.models.contract import FitTask
from ml.paper.cells import (
    EFFORTS,
    Cell,
    CellResult,
    Effort,
    PaperResults,
    expected_left_s,
    plan,
)
from ml.paper.grid import Watcher, run_paper, split_by_picture
from ml.paper.report import write_report
from ml.scans.phantoms import phantom, write_png
from ml.training.progress import Progress, TrainingStopped
from tests.ml.oracle import experiment_of, fit_with

IMAGES, FOLDS = 16, 2


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eight patients of two slices each; every second one bleeds in both."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    root.mkdir()
    rows = ["filename,label,patient,slice"]
    for number in range(IMAGES):
        patient = number // 2
        # From 36 on no two of these simple heads are so alike that they would be joined as the same
        # picture.
        write_png(
            phantom(36 + number, hemorrhage=patient % 2 == 1, size=96), root / f"{number:02d}.png"
        )
        rows.append(f"{number:02d}.png,{patient % 2},p{patient},{number % 2}")
    (root / "labels.csv").write_text("\n".join(rows))
    return read_dataset(root, "phantoms")


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[FitTask]:
    """No architecture computes: decisions are the mean gray of each picture; the tasks are gathered
    here.
    """
    gathered: list[FitTask] = []

    def decide(task: FitTask) -> np.ndarray:
        return np.asarray(task.images, np.float64).mean(axis=(1, 2, 3))

    monkeypatch.setattr(
        ml.training.experiment, "fit_of", lambda architecture: fit_with(decide, gathered)
    )
    return gathered


def few_cells(*names: str) -> list[Cell]:
    """Return the cells of some architectures: two folds, two copies, two repeats at most."""
    effort = Effort({}, EFFORTS["alexnet"].fold_s, repeats=2, copies=3, copies_leaked=2)
    small = {name: replace(effort, restructured_only=name == "autoencoder") for name in names}
    return plan(IMAGES, names, FOLDS, small)


def result_of(results: PaperResults, **wanted: object) -> CellResult:
    (only,) = [
        cell
        for cell in results.cells
        if all(getattr(cell, name) == value for name, value in wanted.items())
    ]
    return only


def test_every_architecture_is_there_in_every_condition_and_protocol() -> None:
    cells = plan(200)
    assert (
        len(cells)
        == len({cell.name for cell in cells})
        == len({cell.identity for cell in cells})
        == 4 * 8 + 4
    )
    assert all(cell.folds == 5 for cell in cells)
    assert {cell.restructured for cell in cells if cell.architecture == "autoencoder"} == {True}
    assert all(
        cell.settings["restructure"] == "autoencoder"
        for cell in cells
        if cell.restructured and cell.architecture != "autoencoder"
    )
    honest = [cell for cell in cells if cell.protocol == "honest"]
    assert [cell.settings["augmentation"] for cell in honest] == [
        cell.augmentation for cell in honest
    ]
    assert {cell.settings["augmentation"] for cell in cells if cell.protocol == "leaked"} == {1}, (
        "its copies are made before the fit"
    )
    assert {cell.repeats for cell in honest if not cell.restructured} == {1, 2, 5}
    assert {cell.repeats for cell in cells if cell.restructured or cell.protocol == "leaked"} == {1}
    assert sum(cell.expected_s for cell in cells) <= 48 * 60


def test_only_cells_that_agree_on_frozen_features_share_them() -> None:
    cells = {cell.name: cell.features_from for cell in plan(200)}
    assert cells["cnn_lstm plain ×10 honest"] == cells["cnn_gru plain ×10 honest"]
    assert cells["alexnet_svm plain ×1 honest"] == cells["alexnet_svm plain ×1 leaked"], (
        "the pictures are the same"
    )
    assert cells["alexnet plain ×10 honest"] != cells["alexnet plain ×1 honest"]
    assert (
        cells["alexnet plain ×1 honest"]
        != cells["alexnet_svm plain ×1 honest"]
        != cells["cnn_gru plain ×1 honest"]
    )
    assert (
        len(
            {
                name
                for cell, name in cells.items()
                if "leaked" in cell and "×1 " not in cell and "plain" in cell
            }
        )
        == 3
    )
    assert (
        cells["alexnet restructured ×1 honest"]
        == cells["cnn_gru restructured ×10 honest"]
        == cells["autoencoder restructured ×1 honest"]
    )


def test_an_architecture_that_the_paper_does_not_have_is_refused() -> None:
    with pytest.raises(
        SettingError,
        match="alexnet_cells is not an architecture of the paper; choose from alexnet, ",
    ):
        plan(200, ["alexnet_cells"])


def test_a_careless_split_knows_no_patient_and_leaves_the_scans_of_a_series_whole(
    tmp_path: Path,
) -> None:
    experiment = experiment_of([0, 1, 0, 1], tmp_path, scans=[0, 0, 1, 1])
    careless = split_by_picture(experiment)
    assert careless.groups.tolist() == ["0", "1", "2", "3"] and careless.scans.tolist() == [
        0,
        1,
        2,
        3,
    ]
    of_series = split_by_picture(replace(experiment, architecture="cnn_gru"))
    assert of_series.groups.tolist() == ["0", "0", "1", "1"] and of_series.scans.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_honest_keeps_patients_apart_and_leaked_splits_copies(
    phantoms: Dataset, tasks: list[FitTask], tmp_path: Path
) -> None:
    run_paper(phantoms, few_cells("alexnet_svm"), tmp_path, init="random")
    whole = [task for task in tasks if len(task.labels) == IMAGES]
    enlarged = [task for task in tasks if len(task.labels) == 2 * IMAGES]
    # Honest x1 and x3: plain twice, restructured once; leaked: each once.
    assert len(whole) == (2 * 2 + 2 + 2) * FOLDS and len(enlarged) == 2 * FOLDS
    patients = np.arange(IMAGES) // 2
    careless = [task for task in whole if len(set(task.groups)) == IMAGES]
    assert len(careless) == 2 * FOLDS
    for task in whole:
        test = np.setdiff1d(np.arange(IMAGES), task.train)
        shared = set(patients[task.train]) & set(patients[test])
        assert bool(shared) == (len(set(task.groups)) == IMAGES)
    for task in enlarged:
        test = np.setdiff1d(np.arange(2 * IMAGES), task.train)
        assert set(task.train % IMAGES) & set(test % IMAGES), (
            "copies of one picture stand on both sides"
        )
        assert task.settings["augmentation"] == 1
    assert {task.settings["augmentation"] for task in whole} == {1, 3}


def test_a_stopped_experiment_continues_by_cell_and_fold_with_the_same_numbers(
    phantoms: Dataset, tasks: list[FitTask], tmp_path: Path
) -> None:
    cells = few_cells("alexnet_svm", "autoencoder")
    straight = run_paper(phantoms, cells, tmp_path / "straight", init="random")
    fits = len(tasks)

    class Interruption:
        def __call__(self, progress: Progress) -> None:
            if len(tasks) >= fits + 7:
                raise TrainingStopped

    with pytest.raises(TrainingStopped):
        run_paper(
            phantoms, cells, tmp_path / "stopped", init="random", watcher=Watcher(Interruption())
        )
    stored = json.loads((tmp_path / "stopped" / "cells.json").read_text())
    assert [cell["name"] for cell in stored["cells"]] == ["alexnet_svm plain ×1 honest"]
    plans: list[tuple[int, int]] = []
    reports: list[Progress] = []
    continued = run_paper(
        phantoms,
        cells,
        tmp_path / "stopped",
        init="random",
        watcher=Watcher(reports.append, lambda total, done, seconds: plans.append((total, done))),
    )
    assert len(tasks) == 2 * fits, "no fold was fitted twice"
    assert plans == [(12, done) for done in range(1, 13)]
    fractions = [progress.fraction for progress in reports]
    assert fractions == sorted(fractions) and fractions[0] > 0 and fractions[-1] == 1
    assert [cell.metrics for cell in continued.cells] == [cell.metrics for cell in straight.cells]
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["cells.json"]
    again = run_paper(phantoms, cells[:8], tmp_path / "stopped", init="random")
    assert len(tasks) == 2 * fits and len(again.cells) == 12, (
        "what is done stays, whatever is asked for"
    )


def test_cells_of_other_data_seed_or_weights_are_not_mixed(
    phantoms: Dataset, tasks: list[FitTask], tmp_path: Path
) -> None:
    cells = few_cells("alexnet_svm")[:1]
    run_paper(phantoms, cells, tmp_path, init="random")
    with pytest.raises(SettingError, match="holds results for other data, weights or seed"):
        run_paper(phantoms, cells, tmp_path, init="random", seed=1)
    stored = json.loads((tmp_path / "cells.json").read_text())
    del stored["cells"][0]["epochs"]
    (tmp_path / "cells.json").write_text(json.dumps(stored))
    with pytest.raises(
        SettingError,
        match=r"cells.json does not have the expected form: object missing required field `epochs`",
    ):
        run_paper(phantoms, cells, tmp_path, init="random")


def test_weights_that_have_seen_the_pictures_are_refused(
    phantoms: Dataset,
    tmp_path: Path,
    tiny_model: Callable[..., Path],
    make_card: Callable[..., Card],
) -> None:
    graphs = {name: (tiny_model() / name).read_bytes() for name in ("features.onnx", "head.onnx")}
    write_model(
        tmp_path / "seen",
        make_card(),
        graphs | {SEEN: seen_json(phantoms.examples, (), learned_features=True)},
    )
    with pytest.raises(DatasetError, match="The initial weights have already seen these images"):
        run_paper(phantoms, few_cells("alexnet_svm"), tmp_path / "out", init=tmp_path / "seen")


def test_the_time_left_follows_what_the_cells_took() -> None:
    cells = [replace(cell, expected_s=10.0) for cell in few_cells("alexnet_svm")]
    assert expected_left_s(cells, {}) == 80
    first = cells[0]
    facts = {item.name: getattr(first, item.name, None) for item in fields(CellResult)}
    done = CellResult(**{**facts, "seconds": 20.0})
    assert expected_left_s(cells, {first.name: done}) == 7 * 20
    other = replace(done, identity="of other settings")
    assert expected_left_s(cells, {first.name: other}) == 80


def test_the_report_has_a_line_a_cell_and_its_figures_in_the_table(
    phantoms: Dataset, tasks: list[FitTask], tmp_path: Path
) -> None:
    result = run_paper(
        phantoms,
        few_cells("autoencoder", "cnn_gru"),
        tmp_path,
        init="random",
        command="python -m ml paper ...",
    )
    write_report(result, tmp_path)
    with (tmp_path / "phantoms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert {row["level"] for row in rows} == {"slice", "patient"}
    cell = result_of(
        result, architecture="cnn_gru", restructured=True, augmentation=3, protocol="honest"
    )
    (row,) = [
        row
        for row in rows
        if (
            row["architecture"],
            row["restructured"],
            row["augmentation"],
            row["protocol"],
            row["level"],
            row["metric"],
        )
        == ("cnn_gru", "yes", "3", "honest", "patient", "auroc")
    ]
    assert float(row["value"]) == pytest.approx(cell.metrics["patient"].auroc.value, abs=1e-4)
    assert (row["n"], row["folds"], row["repeats"], row["epochs"]) == ("8", "2", "1", "40")
    table = (tmp_path / "table.md").read_text()
    of_slices = table[table.index("## By slice") : table.index("## By patient")]
    assert of_slices.count("| honest |") == of_slices.count("| leaked |") == 6
    assert "| autoencoder | yes | ×2 | leaked |" in of_slices and "python -m ml paper ..." in table
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [
        f"phantoms_paper_{level}_{metric}.png"
        for level in ("patient", "slice")
        for metric in ("accuracy", "auroc")
    ]


def test_the_command_computes_real_cells_and_says_how_long_it_takes(
    phantoms: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ml.models.features, "PICTURES_TO_RECONSTRUCT", 0)
    effort = Effort({"layer": "conv3"}, EFFORTS["alexnet_svm"].fold_s, copies=2, copies_leaked=2)

    def plain_honest_and_restructured_leaked(
        images: int, only: Sequence[str] = ("alexnet_svm",)
    ) -> list[Cell]:
        cells = plan(images, only, FOLDS, {"alexnet_svm": effort})
        return [
            cell
            for cell in cells
            if cell.augmentation == 2 and cell.restructured == (cell.protocol == "leaked")
        ]

    monkeypatch.setattr(ml.cli.commands, "plan", plain_honest_and_restructured_leaked)
    arguments = [
        "paper",
        str(phantoms.root),
        "--out",
        str(tmp_path),
        "--init",
        "random",
        "--only",
        "alexnet_svm",
    ]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [cell["name"] for cell in result["cells"]] == [
        "alexnet_svm plain ×2 honest",
        "alexnet_svm restructured ×2 leaked",
    ]
    assert all(0 <= cell["metrics"]["slice"]["auroc"]["value"] <= 1 for cell in result["cells"])
    assert (
        "0 of 2 cells done; the rest takes about" in captured.err
        and "2 of 2 cells done" in captured.err
    )
    assert (tmp_path / "phantoms.csv").is_file() and (tmp_path / "table.md").is_file()
    assert main(arguments) == 0 and "| alexnet_svm | no | ×2 | honest |" in capsys.readouterr().out
    assert main([*arguments[:-1], "resnet"]) == 2
    assert capsys.readouterr().err.endswith(
        "resnet is not an architecture of the paper; choose from alexnet_svm.\n"
    )
