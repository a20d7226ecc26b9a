"""The paper's experiment as a job: an interrupted one resumes at the cell, fold and epoch where it
stopped, on any machine.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import joinedload

from ml.checkpoints import save_json
from ml.datasets.read import Dataset as LoadedDataset
from ml.errors import SettingError, UserError
from ml.paper.cells import Cell, PaperResults, plan
from ml.paper.grid import Watcher, run_paper
from ml.training.progress import Progress, TrainingStopped
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.models import JobStatus, PaperExperiment
from webapp.storage import StorageError, StorageUnavailable
from worker import leases
from worker.heartbeat import heartbeat
from worker.learning.checkpoints import Checkpoint
from worker.learning.dataset_import import fetch_dataset
from worker.learning.training import weights_named
from worker.leases import LeaseLost
from worker.retries import in_transaction
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0


def run_next_experiment() -> bool:
    """Claim a queued experiment and carry it out, or return it to the queue if the worker stops;
    return False if none was queued.
    """
    mine = heartbeat()

    def claim() -> PaperExperiment | None:
        claimed = leases.claim(PaperExperiment, mine.owner)
        if not claimed:
            return None
        return db.session.scalar(
            select(PaperExperiment)
            .where(PaperExperiment.id == claimed[0].id)
            .options(joinedload(PaperExperiment.dataset))
        )

    row = in_transaction(claim)
    if row is None:
        return False
    with mine.holding(PaperExperiment, [row.id]), mine.work_folder() as folder:
        Experimenting(row, folder).carry_through()
    return True


class Experimenting:
    """A claimed experiment while this process works on it."""

    def __init__(self, row: PaperExperiment, folder: Path) -> None:
        self.row = row
        self.folder = folder
        self.out_dir = folder / "out"
        self.checkpoint = Checkpoint(
            row.id, self.out_dir / "checkpoint", folder, row.checkpoint_key
        )
        self._owner = heartbeat().owner
        self._written_at = time.monotonic()
        self._columns: dict[str, Any] = {"stage": "Downloading the data"}
        self._is_lost = False

    def carry_through(self) -> None:
        """Run the cells; the row ends as done or failed, or returns to the queue with what was
        computed.
        """
        try:
            results = self._run()
            done = self._columns.get("cells_done", 0)
            columns = {"results": to_json(results), "cells_done": done, "eta_s": None}
            if not in_transaction(
                lambda: leases.finish(PaperExperiment, self._owner, [self.row.id], **columns)
            ):
                raise LeaseLost
            self.checkpoint.discard()
            log.info("experiment=%s done", self.row.id)
        except (LeaseLost, TrainingStopped, StorageUnavailable):
            self._hand_back()
        except UserError as err:
            self._fail(str(err))
        except StorageError as err:
            if is_passing(err):
                self.checkpoint.store()
                sentences = {self.row.id: str(err)}
                in_transaction(
                    lambda: leases.retry_after_storage_error(
                        PaperExperiment, self._owner, sentences
                    )
                )
            else:
                self._fail(str(err))
        except Exception:
            log.error("experiment=%s failed unexpectedly", self.row.id)
            self._fail(
                "An unexpected error occurred during this experiment; see the log for details."
            )
            raise

    def _run(self) -> PaperResults:
        self._write()
        weights = weights_named(self.row.initial_weights)
        dataset = fetch_dataset(self.row.dataset, self.folder, self._on_part)
        cells = plan(len(dataset.examples), self.row.architectures)
        self.checkpoint.fetch()
        if self.row.results:
            save_json(self.out_dir / "cells.json", self.row.results)
        try:
            return self._cells(dataset, cells, weights)
        except SettingError:
            if not self.row.results:
                raise
            # It was started with another version of this software or of the shipped model.
            log.warning(
                "experiment=%s starts over: its results are from another version", self.row.id
            )
            shutil.rmtree(self.out_dir)
            self.checkpoint.forget()
            return self._cells(dataset, cells, weights)

    def _cells(self, dataset: LoadedDataset, cells: list[Cell], weights: Any) -> PaperResults:
        return run_paper(
            dataset,
            cells,
            self.out_dir,
            init=weights,
            seed=self.row.seed,
            command=f"The paper's experiment {self.row.id}, launched in the browser.",
            watcher=Watcher(self._on_progress, self._on_plan, self._on_cell, self._should_stop),
        )

    def _on_part(self, what: str, done: int, total: int) -> None:
        self._columns["stage"] = f"{what} {done} of {total}"
        if self._should_stop():
            raise TrainingStopped

    def _on_plan(self, cells: int, done: int, seconds: float) -> None:
        self._columns |= {"cells": cells, "cells_done": done, "eta_s": seconds}

    def _on_progress(self, progress: Progress) -> None:
        self._columns |= {"stage": progress.stage[:200], "progress": progress.fraction}
        if self.checkpoint.is_due(current_app.config["CHECKPOINT_S"]) and self.checkpoint.store():
            # A death after a new checkpoint does not count against the experiment.
            self._columns["death_counts"] = False
            self._write()

    def _on_cell(self, results: PaperResults) -> None:
        """Store the results in the row, from which a canceled or lost experiment resumes."""
        self._columns |= {"results": to_json(results), "death_counts": False}
        self._write()

    def _should_stop(self) -> bool:
        if time.monotonic() - self._written_at >= WRITE_EVERY_S:
            self._write()
        return self._is_lost or heartbeat().stopping()

    def _write(self) -> None:
        """Write what has changed; a lost lease ends the experiment, an unavailable database does
        not.
        """
        self._written_at = time.monotonic()
        try:
            held = leases.write(PaperExperiment, self._owner, [self.row.id], **self._columns)
            db.session.commit()
            self._is_lost = not held
            self._columns.pop("results", None)
            self._columns.pop("death_counts", None)
        except SQLAlchemyError as err:
            db.session.rollback()
            name = type(err).__name__
            log.warning("experiment=%s progress could not be written: %s", self.row.id, name)

    def _hand_back(self) -> None:
        """Store the progress, also for a canceled experiment, which may be resumed."""
        status = in_transaction(
            lambda: db.session.scalar(
                select(PaperExperiment.status).where(PaperExperiment.id == self.row.id)
            )
        )
        if status is None:
            self.checkpoint.discard()  # The experiment was deleted with its data set.
        elif status == JobStatus.CANCELLED or not self._is_lost:
            self.checkpoint.store()
            in_transaction(lambda: leases.hand_back(PaperExperiment, self._owner, [self.row.id]))
        else:
            log.warning("experiment=%s was lost to another worker", self.row.id)

    def _fail(self, sentence: str) -> None:
        sentences = {self.row.id: sentence}
        if not in_transaction(lambda: leases.fail(PaperExperiment, self._owner, sentences)):
            self._hand_back()
