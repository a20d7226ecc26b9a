"""Paired differences to the versions made before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from ml.evaluation.answers import write_answers
from tests.worker.conftest import install_model
from tests.worker.learning.test_training import answers_of
from webapp.extensions import db
from webapp.models import (
    Comparison,
    JobStatus,
    ModelVersion,
    TrainingRun,
    request_comparison,
)
from webapp.storage import storage
from worker.learning import comparison
from worker.learning.comparison import compare_with_earlier
from worker.predictors import model_folder

GOOD = [0.1, 0.9, 0.2, 0.8, 0.1, 0.7]
BAD = [0.9, 0.1, 0.8, 0.7, 0.2, 0.6]


def trained(
    tmp_path: Path, probabilities: Sequence[float], gain: float, dataset: str = "phantoms"
) -> ModelVersion:
    """Return a version of a finished run, with its answers stored, that is not live."""
    run = TrainingRun(
        architecture="alexnet_svm",
        settings={},
        initial_weights="random",
        seed=1,
        status=JobStatus.DONE,
    )
    version = install_model(live=False, gain=gain)
    version.run = run
    write_answers(tmp_path / "answers.csv", answers_of(probabilities, dataset))
    storage.put(f"{version.storage_prefix}/predictions.csv", tmp_path / "answers.csv")
    db.session.commit()
    return version


def compared(tmp_path: Path, probabilities: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Return by version how a run with these answers compares."""
    run = tmp_path / "out"
    run.mkdir()
    write_answers(run / "predictions.csv", answers_of(probabilities))
    return compare_with_earlier(run, tmp_path)


def test_a_run_is_compared_with_the_live_version_and_the_newest(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    live = install_model()
    earlier = trained(tmp_path, BAD, 3.0)
    of_each = compared(tmp_path, GOOD)
    assert list(of_each) == [live.id, earlier.id]
    assert of_each[live.id][0]["reason"] == (
        "The other version has no stored out-of-fold predictions."
    )
    (result,) = of_each[earlier.id]
    assert (result["source"], result["slice"]["n"], result["patient"]["n"]) == ("out of fold", 6, 6)
    assert len(result["patient"]["runs"]["own"]["curve"]) > 2
    assert (result["patient"]["positive"], result["patient"]["negative"]) == (3, 3)
    # The bad one ranks 2 of 9 pairs rightly and calls 3 of 6 rightly; the good one all.
    assert result["slice"]["auroc"]["value"] == pytest.approx(1 - 2 / 9)
    assert result["slice"]["accuracy"]["value"] == pytest.approx(0.5)
    assert (
        result["slice"]["auroc"]["low"]
        <= result["slice"]["auroc"]["value"]
        <= result["slice"]["auroc"]["high"]
    )


def test_versions_that_judged_other_images_say_so(worker_app: Flask, tmp_path: Path) -> None:
    trained(tmp_path, GOOD, 3.0, dataset="elsewhere")
    ((result,),) = compared(tmp_path, GOOD).values()
    assert result["reason"] == "These runs have no image in common."


def test_a_storage_that_is_away_is_the_reason(worker_app: Flask, tmp_path: Path) -> None:
    trained(tmp_path, GOOD, 3.0)
    files = Path(worker_app.config["STORAGE_URL"].removeprefix("file://"))
    files.rename(files.with_name("elsewhere"))
    files.mkdir()
    ((result,),) = compared(tmp_path, GOOD).values()
    assert result["reason"] == "The storage cannot be reached at the moment."


def test_only_the_newest_are_compared(worker_app: Flask, tmp_path: Path) -> None:
    made = [trained(tmp_path, GOOD, gain) for gain in range(1, 8)]
    assert set(compared(tmp_path, GOOD)) == {version.id for version in made[2:]}


def test_a_bug_in_a_comparison_costs_no_training(
    worker_app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(runs: object) -> None:
        raise RuntimeError("a bug")

    trained(tmp_path, GOOD, 3.0)
    monkeypatch.setattr(comparison, "compare", fails)
    ((result,),) = compared(tmp_path, GOOD).values()
    assert result["reason"].startswith("An unexpected error occurred during this comparison")


def test_answers_are_no_part_of_the_model_that_workers_fetch(
    worker_app: Flask, tmp_path: Path
) -> None:
    version = trained(tmp_path, GOOD, 3.0)
    storage.put(f"{version.storage_prefix}/types.csv", b"level\n")
    assert not {"predictions.csv", "types.csv"} & {
        path.name for path in model_folder(version).iterdir()
    }


def test_a_comparison_ends_though_tables_are_damaged_or_gone(
    worker_app: Flask, tmp_path: Path
) -> None:
    one, other = trained(tmp_path, GOOD, 3.0), trained(tmp_path, BAD, 4.0)
    for damage, reason in (
        (b"\x00 no table \xff", None),
        (None, "The other version has no stored out-of-fold predictions."),
    ):
        key = f"{other.storage_prefix}/predictions.csv"
        if damage is None:
            storage.discard(key)
        else:
            storage.put(key, damage)
        request_comparison(one.id, other.id)
        db.session.commit()
        assert comparison.compare_next_pair()
        db.session.expire_all()
        row = db.session.scalars(select(Comparison)).one()
        assert row.status in ("done", "failed")
        sentence = row.error or (row.results and row.results[0]["reason"])
        assert sentence and "unexpected" not in sentence, sentence
        assert reason in (None, sentence)
