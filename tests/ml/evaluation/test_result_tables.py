"""Tables of results: which rows a run gives, and that an update replaces its own rows and no
others.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ml.__main__ import main
from ml.errors import ArtifactError
from ml.evaluation.result_tables import COLUMNS, read_results, rows_of, rows_of_run, update_results
from ml.evaluation.results import (
    Bands,
    BothLevels,
    EvaluatedModel,
    Evaluation,
    GateFigures,
    read_evaluation,
)
from ml.figures import BandFigures, Estimate, Metrics, Share, undefined
from ml.typed_json import to_json
from tests.ml.conftest import a_card, metrics_of

FACTS = {"architecture": "alexnet", "restructured": "no", "augmentation": 10, "protocol": "honest"}


def entry(value: float | None, n: int = 20) -> Estimate:
    if value is None:
        return undefined("one class is missing")
    return Estimate(value, value - 0.1, value + 0.05, n)


def figures(value: float, n: int = 20) -> Metrics:
    return metrics_of(value, n, accuracy=entry(value - 0.05, n))


def trained(write: Callable[..., Path], **changed: object) -> Path:
    """Return a model folder that was judged on two sets, the second of which has patients of
    several slices.
    """
    return write(
        architecture="cnn_gru",
        settings={
            "folds": 5,
            "repeats": 2,
            "restructure": "autoencoder",
            "augmentation": 10,
            "epochs": 40,
            "fine_tune_epochs": 0,
        },
        metrics_by_dataset={"head_ct": figures(0.9), "ct_ich": figures(0.8, 1492)},
        patient_metrics_by_dataset={"head_ct": figures(0.9), "ct_ich": figures(0.85, 49)},
        controls=[
            {"name": "permuted", "auroc": entry(0.5), "seconds": 3.2, "how": "…"},
            {"name": "leaked", "skipped": "not asked for"},
        ],
        seconds=120.4,
        **changed,
    )


def test_a_training_gives_rows_by_data_set_level_and_control(
    tiny_model: Callable[..., Path],
) -> None:
    rows = rows_of_run(trained(tiny_model), "5-fold by patient")
    assert set(rows) == {"head_ct", "ct_ich"}
    assert next(row for row in rows["ct_ich"] if row["metric"] == "auroc") == {
        "architecture": "cnn_gru",
        "restructured": "yes",
        "augmentation": "10",
        "protocol": "5-fold by patient",
        "level": "slice",
        "metric": "auroc",
        "value": "0.8",
        "low": "0.7",
        "high": "0.85",
        "n": "1492",
        "folds": "5",
        "repeats": "2",
        "epochs": "40",
        "seconds": "120",
    }
    assert {row["level"] for row in rows["head_ct"]} == {"slice"}, (
        "its patients are single pictures"
    )
    assert [(row["level"], row["value"]) for row in rows["ct_ich"] if row["metric"] == "auroc"] == [
        ("slice", "0.8"),
        ("patient", "0.85"),
        ("slice", "0.5"),
    ]
    assert (
        rows["ct_ich"][-1]["protocol"]
        == "5-fold by patient; control permuted over head_ct + ct_ich"
    )
    assert rows["ct_ich"][-1]["seconds"] == "3"


def test_folds_by_data_set_are_counted_by_data_set(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model(
        settings={"folds_by": "data set", "folds": 5, "repeats": 3},
        data=replace(a_card().data, datasets=["a", "b"]),
        metrics_by_dataset={"a": figures(0.9)},
        patient_metrics_by_dataset={},
    )
    assert {(row["folds"], row["repeats"]) for row in rows_of_run(model, "across sets")["a"]} == {
        ("2", "1")
    }


def test_an_evaluation_gives_rows_without_folds(tmp_path: Path) -> None:
    band = BandFigures(Share(1.0, 400), Share(0.9, 100), Share(0.2, 665))
    both = BothLevels(figures(0.95, 665), figures(0.99, 25))
    result = Evaluation(
        identity="0" * 64,
        model=EvaluatedModel("0" * 12, "alexnet_cells", "slice", {"epochs": 30}),
        threshold=0.5,
        patient_threshold=0.6,
        dataset="phe_sich",
        fingerprint="f" * 64,
        images=665,
        scans=25,
        unknown=0,
        unread=0,
        not_head_ct=GateFigures(refused=0, n=665, share=0.0, median=0.1, highest=0.4),
        slice=both.slice,
        patient=both.patient,
        overlap=0,
        left_out=0,
        all=both,
        band=Bands(band, band),
        notes=[],
        problems=[],
        seconds=61.7,
    )
    (tmp_path / "metrics.json").write_text(json.dumps(to_json(result)))
    assert read_evaluation(tmp_path) == result
    rows = rows_of_run(tmp_path, "trained on the other two")["phe_sich"]
    assert [row["level"] for row in rows] == ["slice"] * 10 + ["patient"] * 10
    assert {
        (row["restructured"], row["augmentation"], row["folds"], row["epochs"], row["seconds"])
        for row in rows
    } == {("no", "", "", "30", "62")}


def test_a_folder_without_results_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds neither a model nor metrics.json"):
        rows_of_run(tmp_path, "any")
    for text, sentence in (("{", "is not JSON"), ("{}", "missing required field `identity`")):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ArtifactError, match=f"metrics.json .*{sentence}"):
            rows_of_run(tmp_path, "any")


def test_an_update_replaces_its_own_rows_keeps_the_others_and_sorts(tmp_path: Path) -> None:
    path = tmp_path / "results" / "head_ct.csv"
    update_results(
        path,
        rows_of(FACTS, "patient", [("auroc", entry(0.7))])
        + rows_of(FACTS, "slice", [("auroc", entry(0.8))]),
    )
    update_results(path, rows_of(FACTS | {"augmentation": 2}, "slice", [("auroc", entry(None))]))
    update_results(path, rows_of(FACTS, "slice", [("auroc", entry(0.9))]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["augmentation"], row["level"], row["value"]) for row in rows] == [
        ("2", "slice", ""),
        ("10", "slice", "0.9"),
        ("10", "patient", "0.7"),
    ]
    before = path.read_bytes()
    update_results(path, reversed(read_results(path)))
    assert path.read_bytes() == before, "the same rows make the same file"


def test_another_kind_of_table_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "head_ct.csv").write_text("family,n\nnoise,20\n")
    with pytest.raises(ArtifactError, match="head_ct.csv is not a table of results"):
        update_results(tmp_path / "head_ct.csv", rows_of(FACTS, "slice", [("auroc", entry(0.9))]))
    assert (tmp_path / "head_ct.csv").read_text() == "family,n\nnoise,20\n"


def test_the_command_writes_a_table_for_each_data_set(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(tiny_model)
    assert main(["results", f"{model}=5-fold by patient", "--out", str(tmp_path / "results")]) == 0
    assert {
        row["protocol"].partition(";")[0]
        for row in read_results(tmp_path / "results" / "ct_ich.csv")
    } == {"5-fold by patient"}
    assert "head_ct.csv: 11 rows" in capsys.readouterr().out
    assert main(["results", str(model), "--out", str(tmp_path)]) == 2
    assert "A run needs a protocol" in capsys.readouterr().err


def test_a_set_of_labeled_scans_alone_has_rows_of_patients_only(
    tiny_model: Callable[..., Path],
) -> None:
    model = tiny_model(
        metrics_by_dataset={"slices": figures(0.9)},
        patient_metrics_by_dataset={"wholes": figures(0.8, 40)},
    )
    assert {row["level"] for row in rows_of_run(model, "5-fold by patient")["wholes"]} == {
        "patient"
    }
