"""Comparisons recognize images by their files, and what ships with a model names nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ml.__main__ import main
from ml.artifacts.folder import read_card
from ml.catalogue import STARTER_DIR, STARTER_SERIES_DIR
from ml.datasets.read import read_dataset
from ml.evaluation.answers import AnswersError, read_answers, write_answers
from ml.evaluation.comparison import compare
from ml.evaluation.curves import curves_of_run, level_curves, worst_mistakes
from ml.evaluation.metrics import auroc
from ml.scans.phantoms import phantom, write_png
from ml.validation.shipped_answers import ship_answers


def write_run(
    folder: Path,
    probabilities: Sequence[float],
    dataset: str = "heads",
    marks: bool = True,
    first: int = 0,
) -> Path:
    """Write answers for slices first, first + 1, ... of a patient each; the odd ones bleed."""
    folder.mkdir()
    rows = []
    for level in ("slice", "patient"):
        for number, probability in enumerate(probabilities, first):
            rows.append(
                {
                    "level": level,
                    "dataset": dataset,
                    "filename": f"{dataset}-{number}.png" if level == "slice" else "",
                    "patient": f"patient {number}",
                    "group": f"patient {number}",
                    "label": number % 2,
                    "repeat": 0,
                    "fold": 0,
                    "probability": probability,
                    "predicted": int(probability >= 0.5),
                    "image": f"{number:016x}" if marks else "",
                }
            )
    write_answers(folder / "predictions.csv", rows)
    return folder


def test_images_are_recognized_under_another_name(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [0.1, 0.9, 0.2, 0.8])
    other = write_run(tmp_path / "other", [0.9, 0.1, 0.2, 0.8, 0.1], dataset="same files", first=0)
    result = compare([one, other])
    assert (result.slice.n, result.patient.n) == (4, 4)
    assert result.slice.differences[0].auroc.value == pytest.approx(-0.75)
    assert result.slice.differences[0].sensitivity.value == -0.5
    assert result.slice.runs[0].curves.positive == result.slice.runs[0].curves.negative == 2
    without = write_run(tmp_path / "old", [0.1, 0.9], dataset="same files", marks=False)
    with pytest.raises(AnswersError, match="no image in common"):
        compare([one, without])
    assert compare([other, without]).slice.n == 2, "by name where a table has no marks"


def test_shipped_answers_name_nobody_and_compare_like_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0.123456789, 0.9, 0.2, 0.8])
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    assert ship_answers(run, [], shipped / "predictions.csv") == 8
    text = (shipped / "predictions.csv").read_text()
    assert "patient " not in text and ".png" not in text and "0.12346" in text
    other = write_run(tmp_path / "other", [0.9, 0.1, 0.2, 0.8])
    (of_shipped,), (of_run,) = (
        compare([reference, other]).slice.differences for reference in (shipped, run)
    )
    assert (of_shipped.auroc, of_shipped.accuracy) == (of_run.auroc, of_run.accuracy)


def test_marks_come_from_the_data_sets_where_a_table_has_none(tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    lines = ["filename,label,patient,slice"]
    for number in range(4):
        hu = phantom(number, hemorrhage=number % 2 == 1, size=64)
        heads.mkdir(exist_ok=True)
        write_png(hu, heads / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},p{number // 2},{number % 2}")
    (heads / "labels.csv").write_text("\n".join(lines))
    rows = [
        {
            "level": level,
            "dataset": "heads",
            "filename": f"{number}.png" if level == "slice" else "",
            "patient": f"p{number // 2}",
            "group": f"p{number // 2}",
            "label": 1,
            "probability": 0.5,
            "predicted": 1,
        }
        for level, numbers in (("slice", range(4)), ("patient", (0, 2)))
        for number in numbers
    ]
    run = tmp_path / "run"
    run.mkdir()
    write_answers(run / "predictions.csv", rows)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(AnswersError, match="is in none of the data sets"):
        ship_answers(run, [], out / "predictions.csv")
    assert not (out / "predictions.csv").exists()
    assert main(["ship-answers", str(run), str(heads), "--out", str(out / "predictions.csv")]) == 0
    marks = {example.name: example.sha256[:16] for example in read_dataset(heads).examples}
    result = read_answers(out)
    assert {answer.image for answer in result["slice"].values()} == set(marks.values())
    assert {answer.image for answer in result["patient"].values()} == {
        marks["0.png"],
        marks["2.png"],
    }


@pytest.mark.parametrize("folder", [STARTER_DIR, STARTER_SERIES_DIR], ids=lambda path: path.name)
def test_answers_that_ship_are_those_of_the_model(folder: Path) -> None:
    slices = read_answers(folder)["slice"].values()
    assert all(answer.image and not answer.filename for answer in slices)
    result = auroc(
        np.array([answer.label for answer in slices]),
        np.array([answer.probabilities[0] for answer in slices]),
    )
    assert result == pytest.approx(read_card(folder).metrics.auroc.value, abs=1e-3)


def test_curves_and_mistakes_have_exact_numbers(tmp_path: Path) -> None:
    curves = level_curves(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]))
    assert [
        (point.threshold, point.sensitivity, point.specificity) for point in curves.thresholds
    ] == [(0, 1, 0), (0.1, 1, 0), (0.4, 1, 0.5), (0.6, 0.5, 0.5), (0.9, 0.5, 1), (1, 0, 1)]
    assert [(one.probability, one.observed.value) for one in curves.calibration] == [
        (0.1, 0),
        (0.4, 1),
        (0.6, 0),
        (0.9, 1),
    ]
    run = write_run(tmp_path / "run", [0.7, 0.4, 0.9, 0.1, 0.2, 0.6])
    assert [(one.filename, one.label, one.probability) for one in worst_mistakes(run, 1)] == [
        ("heads-3.png", 1, 0.1),
        ("heads-2.png", 0, 0.9),
    ]
    assert len(worst_mistakes(run, 9)) == 4
    assert curves_of_run(run)["patient"].positive == 3
