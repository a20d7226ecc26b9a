"""A finished model on labeled sets of every kind; the model's answer hangs on one cell, so every
figure is known.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.__main__ import main
from ml.artifacts.folder import read_card, write_model
from ml.datasets.read import read_dataset
from ml.errors import ArtifactError, SettingError
from ml.evaluation.answers import AnswersError, write_answers
from ml.evaluation.comparison import compare
from ml.evaluation.plots import bars_plot, write_plots
from ml.evaluation.results import States, StatesByLabel, read_evaluation
from ml.figures import Estimate, StateCounts, undefined
from ml.inference.predictor import Predictor, ScanResult
from ml.scans.read import read_series
from ml.scans.slices import Series, Slice
from ml.typed_json import to_json
from ml.validation import external
from ml.validation.external import evaluate
from tests.ml.conftest import features_graph, head_graph
from tests.ml.made_scans import change, write_series

Model = Callable[..., Path]
FIGURES = {
    "accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "auroc",
    "auprc",
    "brier",
    "ece",
}


class StubGate:
    """Stands for the check of pictures: the brighter the cell, the less it is a head CT."""

    calls = 0

    def score(self, slice: Slice) -> float:
        self.calls += 1
        return round(float(slice.pixels[20, 44]), 2)


@pytest.fixture(autouse=True)
def stub_gate(monkeypatch: pytest.MonkeyPatch) -> StubGate:
    """The check is stubbed: the pictures of these tests are noise."""
    stub = StubGate()
    monkeypatch.setattr(external, "gate", lambda: stub)
    return stub


def write_slice(path: Path, cell: float, seed: int) -> None:
    """Write a noisy picture whose cell (2, 5) has that brightness: the tiny model says sigmoid(8 *
    (cell - 0.5)).
    """
    pixels = np.random.default_rng(seed).uniform(0, 1, (64, 64))
    pixels[16:24, 40:48] = cell
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(path)


def write_set(root: Path, rows: list[tuple[str, str, str, float]]) -> Path:
    """Write a data set of (label, patient, slice, brightness of the cell)."""
    lines = ["filename,label,patient,slice"]
    for number, (label, patient, place, cell) in enumerate(rows):
        write_slice(root / f"{number}.png", cell, number)
        lines.append(f"{number}.png,{label},{patient},{place}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Four patients of two slices, listed from the vertex down; a and c bleed, one slice of d
    nobody labeled.
    """
    return write_set(
        tmp_path / "patients",
        [
            *(("1", "a", "2", 0.9), ("0", "a", "1", 0.1)),
            *(("0", "b", "2", 0.2), ("0", "b", "1", 0.6)),
            *(("1", "c", "2", 0.8), ("1", "c", "1", 0.4)),
            *(("", "d", "2", 0.3), ("0", "d", "1", 0.1)),
        ],
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_slice_and_every_patient_is_judged(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = evaluate(tiny_model(), read_dataset(patients), out)
    assert json.loads((out / "metrics.json").read_text()) == to_json(result)
    assert read_evaluation(out) == result
    written = json.loads((out / "metrics.json").read_text())
    assert set(written["slice"]) == set(written["patient"]) == FIGURES
    assert all(
        {"value", "low", "high", "n"} <= set(entry)
        for level in ("slice", "patient")
        for entry in written[level].values()
    )
    # Known slices from above: .9+ .8+ .6- .4+ .2- .1- .1-; of 3 * 4 pairs one is out of order. At
    # .5 three are called.
    assert result.slice.auroc.value == pytest.approx(11 / 12) and result.slice.auroc.n == 7
    assert (
        result.slice.sensitivity.value == pytest.approx(2 / 3) and result.slice.sensitivity.n == 3
    )
    # Patients by their largest slice: a .9+, c .8+, b .6-, d .3-: in order, and b is called too.
    assert result.patient.auroc.value == 1.0 and result.patient.specificity.value == 0.5
    # The band of the tiny model, .4 to .6, holds none of them.
    assert result.states == States(
        slice=StatesByLabel(
            with_hemorrhage=StateCounts(suspected=2, inconclusive=0, not_found=1),
            without=StateCounts(suspected=1, inconclusive=0, not_found=3),
            unlabeled=StateCounts(suspected=0, inconclusive=0, not_found=1),
        ),
        patient=StatesByLabel(
            with_hemorrhage=StateCounts(suspected=2, inconclusive=0, not_found=0),
            without=StateCounts(suspected=1, inconclusive=0, not_found=1),
            unlabeled=StateCounts(suspected=0, inconclusive=0, not_found=0),
        ),
    )
    assert result.patient.auroc.n == 4 and result.unknown == 1 and result.images == 8


def test_every_image_has_its_own_probability_in_the_table(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_text().splitlines()[
        0
    ] == "filename,label,patient,slice,probability"
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [(row["patient"], row["slice"]) for row in rows] == [
        (p, s) for p in "abcd" for s in "12"
    ], "from foot to head"
    by_name = {row["filename"]: row for row in rows}
    assert float(by_name["0.png"]["probability"]) == pytest.approx(
        1 / (1 + np.exp(-8 * 0.4)), abs=0.02
    )
    assert float(by_name["1.png"]["probability"]) == pytest.approx(
        1 / (1 + np.exp(8 * 0.4)), abs=0.02
    )
    assert by_name["6.png"]["label"] == ""


def test_a_series_is_judged_by_the_threshold_of_scans(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    model = tiny_model(scan_threshold=0.8, scan_uncertain_low=0.75, scan_uncertain_high=0.85)
    result = evaluate(model, read_dataset(patients), tmp_path / "out")
    assert result.patient.specificity.value == 1.0, "b, at sigmoid(.8) = .69, lies below"
    assert result.slice.specificity.value == 0.75, (
        "its slice still lies above the threshold of slices"
    )


@pytest.mark.parametrize(
    ("label", "defined", "reason"),
    [("1", "sensitivity", "one class is missing"), ("0", "specificity", "one class is missing")],
)
def test_a_set_of_one_class_has_the_figures_that_it_allows(
    tiny_model: Model, tmp_path: Path, label: str, defined: str, reason: str
) -> None:
    root = write_set(tmp_path / "one", [(label, "", "", 0.9), (label, "", "", 0.1)])
    result = evaluate(tiny_model(), read_dataset(root, needs_both_classes=False), tmp_path / "out")
    assert dict(result.slice.items())[defined].value == 0.5 and result.slice.auroc.value is None
    assert result.slice.auroc.reason == reason == result.patient.auroc.reason
    assert "No image names its patient; each counts as a separate patient." in result.notes


def test_a_set_without_any_label_is_scored_and_has_no_figures(
    tiny_model: Model, tmp_path: Path
) -> None:
    root = write_set(tmp_path / "none", [("", "a", "1", 0.9), ("", "a", "2", 0.1)])
    result = evaluate(tiny_model(), read_dataset(root, needs_both_classes=False), tmp_path / "out")
    assert all(
        estimate.value is None and estimate.reason
        for level in (result.slice, result.patient)
        for _, estimate in level.items()
    )
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 2


def test_how_little_an_image_looks_like_a_head_ct_stands_beside_its_answer(
    patients: Path, tiny_model: Model, tmp_path: Path, stub_gate: StubGate
) -> None:
    result = evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert stub_gate.calls == 8, "each image once"
    output = result.not_head_ct
    assert (
        output.refused,
        output.refused_from,
        output.n,
        output.share,
        output.highest,
    ) == (3, 0.5, 8, 3 / 8, 0.9)
    assert output.median == pytest.approx(0.35, abs=0.01)
    assert any("3 of 8 images do not look like head CT" in note for note in result.notes)
    assert result.slice.auroc.n == 7, "they are evaluated nevertheless"
    rows = rows_of(tmp_path / "out" / "answers.csv")
    assert [float(row["not_head_ct"]) for row in rows[:2]] == [0.1, 0.9]
    assert {row["not_head_ct"] for row in rows if row["level"] == "patient"} == {""}


def test_without_the_check_an_evaluation_says_so_and_goes_on(
    patients: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_missing() -> None:
        raise ArtifactError("The check for pictures that are no head CT is incomplete.")

    monkeypatch.setattr(external, "gate", is_missing)
    result = evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert result.not_head_ct.refused is None and result.not_head_ct.reason
    assert "The check for pictures that are no head CT is incomplete." in result.notes
    assert {row["not_head_ct"] for row in rows_of(tmp_path / "out" / "answers.csv")} == {""}


def test_an_image_that_cannot_be_read_is_named_and_its_patient_scored_with_the_rest(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    with (patients / "labels.csv").open("a") as table:
        table.write("\nblank.png,1,d,3\nlost.png,0,e,1\n")
    Image.new("L", (64, 64)).save(patients / "blank.png")
    (patients / "lost.png").write_bytes(b"no picture")
    result = evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert (
        result.images,
        result.unread,
        result.slice.auroc.n,
        result.patient.auroc.n,
    ) == (8, 2, 7, 4)
    # What bleeds on a slice that nobody can read bleeds: d, at .3, is a third patient with
    # hemorrhage.
    assert result.patient.sensitivity.n == 3 and result.patient.sensitivity.value == pytest.approx(
        2 / 3
    )
    assert (
        "2 of 10 images cannot be read and have no prediction: blank.png, lost.png." in result.notes
    )
    assert "Patients without any readable image, excluded from all metrics: e." in result.notes
    assert any(
        "blank.png is left out: The image is blank" in problem for problem in result.problems
    )
    rows = {row["filename"]: row for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert len(rows) == 10 and rows["blank.png"] == {
        **rows["blank.png"],
        "patient": "d",
        "slice": "3",
        "label": "1",
        "probability": "",
    }
    assert "blank.png" not in {row["filename"] for row in rows_of(tmp_path / "out" / "answers.csv")}


def a_model_that_saw(dataset_root: Path, names: set[str], tmp_path: Path) -> Path:
    marks = [
        [e.sha256[:16], e.dhash]
        for e in read_dataset(dataset_root, needs_both_classes=False, keeps_bare=True).examples
        if e.name in names
    ]
    seen = json.dumps({"features": [], "head": marks}).encode()
    card = read_card(tmp_path / "plain")
    files = {"features.onnx": features_graph(), "head.onnx": head_graph(), "seen.json": seen}
    write_model(tmp_path / "seen", card, files)
    return tmp_path / "seen"


def test_what_training_saw_is_counted_and_left_out_with_its_patient(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    tiny_model().rename(tmp_path / "plain")
    model = a_model_that_saw(patients, {"0.png"}, tmp_path)
    result = evaluate(model, read_dataset(patients), tmp_path / "out")
    assert (result.overlap, result.left_out) == (1, 2), "one image of patient a, who has two"
    assert result.patient.auroc.n == 3 and result.all.patient.auroc.n == 4
    assert result.slice.auroc.n == 5 and result.all.slice.auroc.n == 7
    assert any("has seen 1 of the 8 images" in note for note in result.notes)
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 8


def test_where_training_saw_everything_there_is_no_headline(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    tiny_model().rename(tmp_path / "plain")
    model = a_model_that_saw(patients, {f"{n}.png" for n in range(8)}, tmp_path)
    result = evaluate(model, read_dataset(patients), tmp_path / "out")
    reason = "all of it was in the model's training data"
    assert result.slice.auroc == undefined(reason)
    assert result.all.slice.auroc.value == pytest.approx(11 / 12)


def test_an_interrupted_evaluation_continues_with_the_same_answers(
    patients: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = tiny_model(), read_dataset(patients)
    straight = evaluate(model, dataset, tmp_path / "straight")

    def interrupt(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, dataset, tmp_path / "out", interrupt)
    assert len(json.loads((tmp_path / "out" / "partial.json").read_text())["answers"]) == 2
    calls: list[int] = []
    predict = Predictor.predict
    monkeypatch.setattr(
        Predictor,
        "predict",
        lambda self, series: calls.append(len(series.slices)) or predict(self, series),
    )
    continued = evaluate(model, dataset, tmp_path / "out")
    assert calls == [2, 2] and not (tmp_path / "out" / "partial.json").exists()
    assert replace(continued, seconds=0) == replace(straight, seconds=0)


def test_slices_put_in_another_order_are_answered_for_anew(
    patients: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, predict, calls = tiny_model(), Predictor.predict, list[int]()

    def interrupted(self: Predictor, series: Series) -> ScanResult:
        calls.append(len(series.slices))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, series)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, read_dataset(patients), tmp_path / "out")
    labels = patients / "labels.csv"
    labels.write_text(labels.read_text().replace("a,2", "a,0"))
    evaluate(model, read_dataset(patients), tmp_path / "out")
    assert len(calls) == 3 + 4
    by_name = {
        row["filename"]: float(row["probability"])
        for row in rows_of(tmp_path / "out" / "predictions.csv")
    }
    assert by_name["0.png"] > 0.9 and by_name["1.png"] < 0.1


def test_a_file_of_somebody_else_is_not_written_over(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("not ours")
    with pytest.raises(SettingError, match="another model or data set"):
        evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").read_text() == "not ours"


def test_a_black_slice_is_scored_with_its_patient_and_left_out_alone(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    for name in ("8.png", "9.png"):
        Image.new("L", (64, 64)).save(patients / name)
    with (patients / "labels.csv").open("a") as table:
        table.write("\n8.png,0,a,3\n9.png,0,alone,1")
    assert {example.name for example in read_dataset(patients).unread} == {"8.png", "9.png"}, (
        "nothing is learned from it"
    )
    dataset = read_dataset(patients, keeps_bare=True)
    assert [example.name for example in dataset.unread] == [
        "9.png"
    ] and "is left out: The image is blank" in dataset.problems[0]
    result = evaluate(tiny_model(), dataset, tmp_path / "out")
    assert result.slice.auroc.n == 8 and result.patient.auroc.n == 4
    by_name = {
        row["filename"]: row["probability"] for row in rows_of(tmp_path / "out" / "predictions.csv")
    }
    assert 0 <= float(by_name["8.png"]) <= 1 and by_name["9.png"] == ""


def test_empty_slices_that_training_saw_too_leave_no_patient_out(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    for number, name in enumerate(("8.png", "9.png")):
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(patients / name)
    with (patients / "labels.csv").open("a") as table:
        table.write("\n8.png,0,a,3\n9.png,0,b,3")
    tiny_model().rename(tmp_path / "plain")
    model = a_model_that_saw(patients, {"8.png"}, tmp_path)
    dataset = read_dataset(patients, keeps_bare=True)
    assert (
        len({example.dhash for example in dataset.examples if example.name in ("8.png", "9.png")})
        == 1
    )
    assert len({example.group for example in dataset.examples}) == 4
    result = evaluate(model, dataset, tmp_path / "out")
    assert (result.overlap, result.left_out) == (0, 0) and result.slice.auroc.n == 9


def test_thin_dicom_slices_are_answered_for_as_in_serving(
    tiny_model: Model, tmp_path: Path
) -> None:
    """Their names run from head to foot; each slab of four has one answer, and a second series of
    the patient makes the place unknown.
    """
    paths = write_series(tmp_path / "set", 12, step_mm=1.25, SeriesInstanceUID="1.2.3")
    names = [
        path.rename(path.with_name(f"{99 - number}.dcm")).name for number, path in enumerate(paths)
    ]
    rows = [f"{name},{int(number < 4)},a" for number, name in enumerate(names)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["filename,label,patient", *rows]))
    model = tiny_model()
    dataset = read_dataset(tmp_path / "set", needs_both_classes=False)
    evaluate(model, dataset, tmp_path / "out")
    table = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["filename"] for row in table] == names, "from foot to head"
    served = Predictor(model).predict(read_series([tmp_path / "set" / name for name in names]))
    assert [float(row["probability"]) for row in table] == pytest.approx(
        served.slice_probabilities, abs=1e-6
    )
    assert len(set(served.slice_probabilities)) <= 3
    # lies where another one lies
    (tmp_path / "set" / "1.dcm").write_bytes((tmp_path / "set" / names[5]).read_bytes())
    (tmp_path / "set" / "2.dcm").write_bytes(b"no slice")
    (tmp_path / "set" / "labels.csv").write_text(
        "\n".join(["filename,label,patient", *rows, "1.dcm,0,a", "2.dcm,0,a"])
    )
    evaluate(model, read_dataset(tmp_path / "set", needs_both_classes=False), tmp_path / "doubled")
    table = rows_of(tmp_path / "doubled" / "predictions.csv")
    assert [row["filename"] for row in table if row["filename"] not in ("1.dcm", "2.dcm")] == names
    assert (table[-1]["filename"], table[-1]["probability"]) == ("2.dcm", "")
    assert float(table[0]["probability"]) == pytest.approx(served.slice_probabilities[0], abs=1e-6)
    change(tmp_path / "set" / names[0], SeriesInstanceUID="1.2.4")
    assert {example.place_mm for example in read_dataset(tmp_path / "set").examples} == {None}


def test_thin_slices_of_one_slab_are_judged_as_the_slice_they_are(
    tiny_model: Model, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "set", 3, step_mm=1.25)
    (tmp_path / "set" / "labels.csv").write_text(
        "\n".join(["filename,label,patient", *(f"{path.name},1,a" for path in paths)])
    )
    model = tiny_model(
        uncertain_low=0.0,
        uncertain_high=1.0,
        scan_threshold=0.5,
        scan_uncertain_low=0.5,
        scan_uncertain_high=0.5,
    )
    evaluate(model, read_dataset(tmp_path / "set", needs_both_classes=False), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert Predictor(model).predict(read_series(paths)).uncertain
    assert written["band"]["patient"]["uncertain"]["value"] == 1.0
    assert written["states"]["patient"]["with_hemorrhage"]["inconclusive"] == 1


def test_the_answers_of_a_training_are_not_written_over(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    model = tiny_model()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.csv").write_text("out of fold")
    for name in ("model", "checkpoint"):
        (tmp_path / "run" / name).mkdir()
        with pytest.raises(
            SettingError, match="holds a training, whose predictions would be overwritten"
        ):
            evaluate(model, read_dataset(patients), tmp_path / "run")
        (tmp_path / "run" / name).rmdir()
    assert (tmp_path / "run" / "predictions.csv").read_text() == "out of fold"


def test_a_folder_is_not_mixed_with_another_evaluation(
    patients: Path, tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tiny_model(), tiny_model(head={"gain": 4.0})
    arguments = ["evaluate", str(patients), "--out", str(tmp_path / "out"), "--json"]
    assert main([arguments[0], str(first), *arguments[1:]]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8
    assert main([arguments[0], str(second), *arguments[1:]]) == 2
    assert "holds an evaluation of another model or data set" in capsys.readouterr().err


def test_the_plots_stand_beside_the_figures(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    names = {path.name for path in write_plots(tmp_path / "out")}
    assert names == {
        f"{level}_{kind}.png"
        for level in ("slice", "patient")
        for kind in ("roc", "calibration", "figures")
    }
    for name in names:
        with Image.open(tmp_path / "out" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"


def test_bars_are_drawn(tmp_path: Path) -> None:
    bars_plot(
        tmp_path / "bars.png",
        {"svm": Estimate(0.9, 0.8, 0.95, 20), "none": undefined("there is no image")},
        "t",
        "AUROC",
    )
    with Image.open(tmp_path / "bars.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_two_models_are_compared_on_what_they_share(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    dataset = read_dataset(patients)
    evaluate(tiny_model(), dataset, tmp_path / "good")
    evaluate(tiny_model(head={"row": 0, "column": 0}), dataset, tmp_path / "noise")
    result = compare([tmp_path / "good", tmp_path / "noise"])
    assert (result.slice.n, result.patient.n) == (7, 4), "the slice without a label is in no figure"
    assert [run.run for run in result.slice.runs] == ["good", "noise"]
    good, noise = (run.metrics.auroc.value for run in result.slice.runs)
    (difference,) = result.slice.differences
    assert difference.auroc.value == pytest.approx(noise - good) and difference.minus == "good"
    assert difference.auroc.low <= difference.auroc.value <= difference.auroc.high
    assert result.slice.runs[0].auroc_within_folds is None, "there are none"


def test_runs_over_several_data_sets_are_compared_in_each_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, of_second in (("first", [0.2, 0.8, 0.3, 0.9]), ("second", [0.8, 0.2, 0.9, 0.3])):
        (tmp_path / run).mkdir()
        rows = []
        for dataset, probabilities in (("a", [0.1, 0.9, 0.2, 0.8]), ("all", of_second)):
            for number, probability in enumerate(probabilities):
                facts = {
                    "level": "slice",
                    "dataset": dataset,
                    "filename": f"{number}.png",
                    "label": number % 2,
                    "fold": number // 2,
                }
                rows.append(
                    {
                        **facts,
                        "group": f"{dataset}{number}",
                        "probability": probability,
                        "predicted": int(probability >= 0.5),
                    }
                )
        write_answers(tmp_path / run / "answers.csv", rows)
    result = compare([tmp_path / "first", tmp_path / "second"]).slice
    assert result.by_dataset is not None
    assert result.n == 8 and {name: own.n for name, own in result.by_dataset.items()} == {
        "a": 4,
        "all": 4,
    }
    (same,), (reversed_,) = (result.by_dataset[name].differences for name in ("a", "all"))
    assert same.auroc.value == 0 and reversed_.auroc.value == -1
    assert result.runs[1].auroc_within_folds.value == 0.625, "5 of 8 pairs, 4 in each fold"
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    output = capsys.readouterr().out
    assert [
        f"{which}, second minus first" in output
        for which in ("all, 8 in common", "a, 4 in common", "all, 4 in common")
    ] == [True] * 3


def test_runs_that_share_nothing_are_not_compared(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    for name, cell in (("one", 0.9), ("two", 0.3)):
        root = write_set(tmp_path / name, [("1", "", "", cell), ("0", "", "", cell / 2)])
        evaluate(model, read_dataset(root), tmp_path / f"{name}-out")
    assert main(["compare", str(tmp_path / "one-out"), str(tmp_path / "two-out")]) == 2
    assert capsys.readouterr().err == "These runs have no image in common.\n"
    with pytest.raises(AnswersError, match="holds no answers"):
        compare([tmp_path / "one"])


def test_a_damaged_table_of_answers_is_named(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    table = tmp_path / "out" / "answers.csv"
    table.write_text(table.read_text()[:-30])
    with pytest.raises(AnswersError, match="is a damaged table of answers"):
        compare([tmp_path / "out"])


def test_a_patient_without_labeled_slices_is_judged_by_the_label_of_the_scan(
    patients: Path, tiny_model: Model, tmp_path: Path
) -> None:
    table = patients / "labels.csv"
    table.write_text(
        table.read_text().replace("4.png,1,", "4.png,,").replace("5.png,1,", "5.png,,")
    )
    (patients / "patients.csv").write_text("patient,scan_label\nc,1\nd,0\n")
    result = evaluate(tiny_model(), read_dataset(patients), tmp_path / "out")
    assert result.slice.auroc.n == 5 and result.patient.auroc.n == 4
    assert result.patient.auroc.value == 1.0, "as where the slices of c are labeled"
    of_patients = {
        row["patient"]: row["label"]
        for row in rows_of(tmp_path / "out" / "answers.csv")
        if row["level"] == "patient"
    }
    assert of_patients == {"a": "1", "b": "0", "c": "1", "d": "0"}
