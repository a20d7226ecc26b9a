"""A model version scored on a data set, and every way in which that ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import select, update

from tests.worker.conftest import install_model
from tests.worker.learning.test_dataset_import import LABELS, archive_of, import_archive
from webapp.deletion import StillNeeded, delete_dataset
from webapp.extensions import database_now, db
from webapp.models import Comparison, Dataset, Evaluation, JobStatus, ModelVersion, cancel
from webapp.storage import storage
from worker import orphaned_files, sweep, tasks
from worker.heartbeat import heartbeat
from worker.learning import evaluation


def queue(version: ModelVersion, dataset: Dataset) -> Evaluation:
    """Ask for an evaluation."""
    row = Evaluation(version_id=version.id, dataset_id=dataset.id)
    db.session.add(row)
    db.session.commit()
    return row


def the_evaluation() -> Evaluation:
    """Return the only one, as the database has it now."""
    db.session.expire_all()
    row = db.session.scalars(select(Evaluation)).one()
    db.session.commit()
    return row


@pytest.fixture
def phantoms(worker_app: Flask, tmp_path: Path) -> Dataset:
    """A data set of four phantoms of a patient each, two with hemorrhage, that is ready."""
    dataset = import_archive(archive_of(tmp_path, LABELS))
    assert dataset.status == JobStatus.DONE
    return dataset


def at_scoring(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen before the first image is scored."""
    real = evaluation.evaluate

    def evaluate(model: object, dataset: object, out: Path, on_progress: object, **how: object):  # type: ignore[no-untyped-def]
        act()
        return real(model, dataset, out, on_progress, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(evaluation, "WRITE_EVERY_S", 0.0)


def test_a_version_is_scored_once_and_its_figures_tables_and_mistakes_stay(
    phantoms: Dataset,
) -> None:
    live, candidate = install_model(), install_model(live=False, gain=3.0)
    queue(candidate, phantoms)
    tasks.train_model()
    row = the_evaluation()
    assert (row.status, row.error, row.progress) == ("done", None, 1.0)
    assert row.result and row.curves and row.mistakes is not None
    assert (row.result["images"], row.result["patient"]["auroc"]["n"]) == (4, 4)
    assert row.curves["patient"]["positive"] == row.curves["slice"]["negative"] == 2
    pictures = [
        (Image.open(io.BytesIO(storage.get(row.mistake_key(number, layer)))).size, one["heat"])
        for number, one in enumerate(row.mistakes)
        for layer in ("", "-heat")
    ]
    assert pictures == [((64, 64), True)] * 2 * len(row.mistakes)
    assert {key.rsplit("/")[-1] for key in storage.keys(row.storage_prefix)} >= {
        "answers.csv",
        "metrics.json",
    }
    wrong = round(4 * (1 - row.result["slice"]["accuracy"]["value"]))
    assert len(row.mistakes) == wrong
    assert list(heartbeat().folder.iterdir()) == []
    # What it contributes to is compared next; the live version has no answers yet.
    pair = db.session.scalars(select(Comparison)).one()
    assert (pair.version_id, pair.other_id) == (candidate.id, live.id)
    queue_of_live = Evaluation(version_id=live.id, dataset_id=phantoms.id)
    db.session.add(queue_of_live)
    db.session.commit()
    for _ in range(3):
        tasks.train_model()
    db.session.expire_all()
    pair = db.session.scalars(select(Comparison)).one()
    assert pair.status == "done" and pair.results
    out_of_fold, of_phantoms = pair.results
    assert out_of_fold["reason"] == "The other version has no stored out-of-fold predictions."
    assert (of_phantoms["source"], of_phantoms["own"]) == ("phantoms", "evaluation")
    assert (of_phantoms["patient"]["n"], of_phantoms["patient"]["positive"]) == (4, 2)
    assert of_phantoms["patient"]["auroc"]["value"] == 0  # The tiny models rank alike.


def test_a_worker_that_stops_hands_it_back_and_nothing_is_scored_twice(
    phantoms: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(install_model(), phantoms)
    scored: list[str] = []
    tell = evaluation.Evaluating._tell

    def stop_after_two(self: evaluation.Evaluating, what: str, done: int, total: int) -> None:
        if what == evaluation.SCORING:
            scored.append(f"{done} of {total}")
            if len(scored) == 3:
                raise evaluation.EvaluationStopped
        tell(self, what, done, total)

    monkeypatch.setattr(evaluation.Evaluating, "_tell", stop_after_two)
    tasks.train_model()
    row = the_evaluation()
    assert (row.status, row.attempts) == ("queued", 0)
    assert storage.exists(f"{row.storage_prefix}/partial.json")
    tasks.train_model()
    assert the_evaluation().status == "done"
    assert scored == ["0 of 4", "1 of 4", "2 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert not storage.exists(f"{row.storage_prefix}/partial.json")


def test_a_canceled_evaluation_ends_and_leaves_no_file(
    phantoms: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = queue(install_model(), phantoms)

    def cancel_it() -> None:
        assert cancel(Evaluation, Evaluation.id == row.id)
        db.session.commit()

    at_scoring(monkeypatch, cancel_it)
    tasks.train_model()
    assert the_evaluation().status == "cancelled"
    assert storage.keys("evaluations") == []


def test_a_data_set_is_not_deleted_under_an_evaluation_but_with_it(phantoms: Dataset) -> None:
    row = queue(install_model(), phantoms)
    with pytest.raises(StillNeeded, match="is still queued or running"):
        delete_dataset(phantoms.id)
    tasks.train_model()
    assert storage.keys(row.storage_prefix)
    assert delete_dataset(phantoms.id)
    assert db.session.scalars(select(Evaluation)).all() == []
    assert storage.keys("evaluations") == []


def test_a_data_set_that_vanishes_all_the_same_ends_the_evaluation(
    phantoms: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(install_model(), phantoms)

    def delete_row() -> None:
        db.session.execute(update(Evaluation).values(status="cancelled"))
        db.session.commit()
        delete_dataset(phantoms.id)

    at_scoring(monkeypatch, delete_row)
    tasks.train_model()
    assert db.session.scalars(select(Evaluation)).all() == []
    assert storage.keys("evaluations") == []


@pytest.mark.parametrize("what", ["archive", "model"])
def test_files_that_are_gone_or_damaged_fail_it_with_a_sentence(
    phantoms: Dataset, what: str
) -> None:
    version = install_model()
    queue(version, phantoms)
    if what == "archive":
        storage.delete(phantoms.archive_key)
    else:
        storage.put(f"{version.storage_prefix}/head.onnx", b"not a graph")
    tasks.train_model()
    row = the_evaluation()
    assert row.status == "failed" and row.error and row.error.endswith(".")
    assert storage.keys("evaluations") == []


def test_a_bug_fails_it_with_a_neutral_sentence(
    phantoms: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("a bug")

    queue(install_model(), phantoms)
    at_scoring(monkeypatch, fails)
    with pytest.raises(RuntimeError, match="a bug"):
        tasks.train_model()
    row = the_evaluation()
    assert row.status == "failed" and "unexpected error occurred" in (row.error or "")


def test_a_worker_that_dies_three_times_ends_it(phantoms: Dataset) -> None:
    row = queue(install_model(), phantoms)
    for _ in range(3):
        db.session.execute(
            update(Evaluation).values(
                status="running",
                lease_owner="gone",
                death_counts=True,
                lease_expires_at=database_now(-60),
            )
        )
        db.session.commit()
        sweep.bring_back()
    assert the_evaluation().error == (
        "The worker stopped three times while it was evaluating this version."
    )
    storage.put(f"{row.storage_prefix}/answers.csv", b"half")
    assert orphaned_files.FILE.fullmatch(f"{row.storage_prefix}/answers.csv")
