"""The paper's experiment as a job: launched, canceled, lost, resumed and done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from ml.artifacts.card import InitialWeights
from ml.checkpoints import load_json, save_json
from ml.errors import SettingError
from ml.paper.cells import Cell, CellResult, PaperResults
from ml.paper.grid import Watcher
from ml.training.progress import Progress, TrainingStopped
from ml.typed_json import from_json, to_json
from tests.ml.conftest import metrics_of
from tests.worker.learning.test_dataset_import import archive_of
from webapp.extensions import db
from webapp.models import Dataset, JobStatus, PaperExperiment, cancel, queue_again
from webapp.storage import storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.learning import paper
from worker.tasks import train_model

LABELS = "filename,label,patient\n0.png,0,a\n1.png,1,b\n2.png,0,c\n3.png,1,d\n"


class StubExperiment:
    """Stands for `ml.paper.grid.run_paper`: three cells, each with a checkpoint in its middle."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, bool]] = []
        self.in_the_middle: Callable[[int], None] = lambda cell: None
        self.identity = "this version"

    def __call__(
        self, dataset: Any, cells: Sequence[Cell], out_dir: Path, *, watcher: Watcher, **how: Any
    ) -> PaperResults:
        stored = load_json(out_dir / "cells.json")
        if stored and stored["identity"] != self.identity:
            raise SettingError("The folder holds results for other data.")
        weights = InitialWeights(kind="random")
        facts = ("heads", 4, 4, weights, 0, how["command"], [], [])
        results = from_json(PaperResults, stored) if stored else PaperResults(self.identity, *facts)
        for number in range(len(results.cells), 3):
            watcher.on_plan(3, number, 60.0 * (3 - number))
            half = out_dir / "checkpoint" / "fold-0.json"
            self.begun.append((number, half.is_file()))
            save_json(half, {})
            watcher.on_progress(Progress(f"cell {number + 1} of 3", number / 3, None, {}))
            self.in_the_middle(number)
            if watcher.should_stop():
                raise TrainingStopped
            half.unlink()
            cell = cells[number]
            result = CellResult(
                cell.name, "id", cell.architecture, False, 1, "honest", {}, 5, 1, 0, 1.0,
                {"slice": metrics_of(0.9)},
            )  # fmt: skip
            results.cells.append(result)
            watcher.on_cell(results)
        watcher.on_plan(3, 3, 0.0)
        return results


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, worker_app: Flask) -> StubExperiment:
    """The experiment is stubbed, and progress is written as often as it is told."""
    stub = StubExperiment()
    monkeypatch.setattr(paper, "run_paper", stub)
    monkeypatch.setattr(paper, "WRITE_EVERY_S", 0.0)
    worker_app.config["CHECKPOINT_S"] = 0
    return stub


@pytest.fixture
def experiment_id(worker_app: Flask, tmp_path: Path) -> str:
    """A queued experiment."""
    dataset = Dataset(name="heads", archive_key="datasets/1.zip", status=JobStatus.DONE)
    storage.put(dataset.archive_key, archive_of(tmp_path, LABELS))
    row = PaperExperiment(dataset=dataset, architectures=["alexnet_svm"])
    db.session.add(row)
    db.session.commit()
    return row.id


def the_row() -> PaperExperiment:
    """Return the experiment as the database has it."""
    query = select(PaperExperiment)
    row = db.session.scalars(query, execution_options={"populate_existing": True}).one()
    db.session.commit()
    return row


def cells_of(row: PaperExperiment) -> int:
    """Return how many cells are in its results."""
    return len((row.results or {}).get("cells", ()))


def test_an_experiment_is_carried_through(stub: StubExperiment, experiment_id: str) -> None:
    train_model()
    row = the_row()
    assert (row.status, row.error, row.cells, row.cells_done) == ("done", None, 3, 3)
    assert cells_of(row) == 3 and row.eta_s is None
    assert storage.keys("papers") == [] and list(heartbeat().folder.iterdir()) == []


def test_a_canceled_experiment_keeps_its_cells_and_goes_on_where_it_was(
    stub: StubExperiment, experiment_id: str
) -> None:
    def stop_it(cell: int) -> None:
        if cell == 1:
            cancel(PaperExperiment, PaperExperiment.id == experiment_id)
            db.session.commit()

    stub.in_the_middle = stop_it
    train_model()
    row = the_row()
    assert (row.status, cells_of(row)) == (JobStatus.CANCELLED, 1)
    assert storage.keys("papers") == [row.checkpoint_key]
    stub.in_the_middle = lambda cell: None
    queue_again(PaperExperiment, PaperExperiment.id == experiment_id)
    db.session.commit()
    train_model()
    assert (the_row().status, cells_of(the_row())) == (JobStatus.DONE, 3)
    assert stub.begun == [(0, False), (1, False), (1, True), (2, False)]


def test_an_experiment_whose_worker_died_goes_on_from_its_checkpoint(
    stub: StubExperiment, experiment_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends a worker without a word."""

    def die(cell: int) -> None:
        if cell == 2:
            raise Killed

    stub.in_the_middle = die
    with pytest.raises(Killed):
        train_model()
    assert (the_row().status, cells_of(the_row())) == (JobStatus.RUNNING, 2)
    row = db.session.get_one(PaperExperiment, experiment_id)
    row.lease_expires_at = row.created_at
    db.session.commit()
    leases.reap(PaperExperiment, "was running")
    db.session.commit()
    stub.in_the_middle = lambda cell: None
    train_model()
    assert (the_row().status, cells_of(the_row())) == (JobStatus.DONE, 3)
    assert stub.begun[-1] == (2, True)


def test_results_of_another_version_are_computed_again(
    stub: StubExperiment, experiment_id: str
) -> None:
    row = db.session.get_one(PaperExperiment, experiment_id)
    earlier = PaperResults("another", "heads", 4, 4, InitialWeights(kind="random"), 0, "", [], [])
    row.results = to_json(earlier)
    db.session.commit()
    train_model()
    assert (the_row().status, cells_of(the_row())) == (JobStatus.DONE, 3)


def test_weights_that_are_gone_fail_it_with_a_sentence(
    stub: StubExperiment, experiment_id: str
) -> None:
    row = db.session.get_one(PaperExperiment, experiment_id)
    row.initial_weights = "version:gone"
    db.session.commit()
    train_model()
    assert (the_row().status, the_row().error) == (
        JobStatus.FAILED,
        "Unknown initial weights 'version:gone'.",
    )
