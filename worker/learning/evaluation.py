"""Scores a model version on a data set, once; an evaluation that was returned to the queue
continues where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.datasets.examples import Example, scan_key, slice_of
from ml.datasets.pool import in_scan_order
from ml.datasets.read import Dataset as LoadedDataset
from ml.errors import UserError
from ml.evaluation.curves import Mistake, curves_of_run, worst_mistakes
from ml.inference.heat_maps import overlay
from ml.inference.predictor import Predictor
from ml.scans.slices import Series, render
from ml.typed_json import to_json
from ml.validation.external import PARTIAL, evaluate
from webapp.extensions import db
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import Evaluation, JobStatus, request_comparisons_after
from webapp.storage import MissingFile, StorageError, StorageUnavailable, storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.learning.dataset_import import READING, UNPACKING, fetch_dataset
from worker.leases import LeaseLost
from worker.predictors import load_model, model_folder
from worker.retries import in_transaction, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

SCORING = "Scoring image"
SHARES = {UNPACKING: (0.0, 0.05), READING: (0.05, 0.2), SCORING: (0.25, 0.75)}
"""Where the progress of each part begins, and which fraction of the whole it is."""
WRITE_EVERY_S = 1.0
"""How often progress is written and the lease checked, and therefore how soon a canceled evaluation
ends.
"""
MOST_MISTAKES = 8
"""The number of missed hemorrhages, and of false alarms, that are shown."""
MISTAKE_PX = 512
NEIGHBORS = 4
"""Neighbors on each side that a series model needs for the heat map of a slice
(`Predictor.heatmaps`).
"""
TABLES = ("answers.csv", "predictions.csv", "metrics.json")


class EvaluationStopped(Exception):
    """This worker was asked to stop; the evaluation returns to the queue."""


def evaluate_next() -> bool:
    """Claim a queued evaluation and carry it out, or return it to the queue if the worker stops;
    return False if none was queued.
    """
    mine = heartbeat()

    def claim() -> Evaluation | None:
        claimed = leases.claim(Evaluation, mine.owner)
        if not claimed:
            return None
        parts = (joinedload(Evaluation.version), joinedload(Evaluation.dataset))
        return db.session.scalar(
            select(Evaluation).where(Evaluation.id == claimed[0].id).options(*parts)
        )

    row = in_transaction(claim)
    if row is None:
        return False
    with mine.holding(Evaluation, [row.id]), mine.work_folder() as folder:
        Evaluating(row, folder).carry_through()
    return True


class Evaluating:
    """A claimed evaluation while this process works on it."""

    def __init__(self, row: Evaluation, folder: Path) -> None:
        self.row = row
        self.folder = folder
        self.out_dir = folder / "out"
        self._owner = heartbeat().owner
        self._written_at = float("-inf")

    def carry_through(self) -> None:
        """Score; the row ends as done or failed, or returns to the queue with what was scored."""
        try:
            columns = self._score()
            if not in_transaction(lambda: self._finish(columns)):
                raise LeaseLost
            nudge(TRAIN_MODEL)  # For the comparisons to which this evaluation contributes.
            log.info("evaluation=%s done", self.row.id)
        except LeaseLost:
            self._let_go()
        except (EvaluationStopped, StorageUnavailable):
            self._keep_partial()
            in_transaction(lambda: leases.hand_back(Evaluation, self._owner, [self.row.id]))
        except UserError as err:
            self._fail(str(err))
        except StorageError as err:
            if is_passing(err):
                sentences = {self.row.id: str(err)}
                in_transaction(
                    lambda: leases.retry_after_storage_error(Evaluation, self._owner, sentences)
                )
            else:
                self._fail(str(err))
        except Exception:
            log.error("evaluation=%s failed unexpectedly", self.row.id)
            self._fail(
                "An unexpected error occurred during this evaluation; see the log for details."
            )
            raise

    def _score(self) -> dict[str, Any]:
        """Return the columns of the result; its files are stored."""
        model = model_folder(self.row.version)
        # As in `python -m ml evaluate`, a data set may have a single class.
        dataset = fetch_dataset(
            self.row.dataset, self.folder, self._tell, needs_both_classes=False, keeps_bare=True
        )
        self.out_dir.mkdir()
        self._fetch_partial()
        result = evaluate(
            model,
            dataset,
            self.out_dir,
            lambda done, total: self._tell(SCORING, done, total),
            threads=current_app.config["PREDICT_THREADS"],
        )
        mistakes = worst_mistakes(self.out_dir, MOST_MISTAKES)
        self._store(dataset, mistakes, load_model(model))
        return {
            "result": to_json(result),
            "curves": to_json(curves_of_run(self.out_dir)),
            "mistakes": [{**to_json(mistake), "heat": True} for mistake in mistakes],
        }

    def _store(self, dataset: LoadedDataset, mistakes: list[Mistake], predictor: Predictor) -> None:
        """Store the tables, and images of the mistakes with their heat maps."""
        for name in TABLES:
            key = f"{self.row.storage_prefix}/{name}"
            retry_storage(lambda name=name, key=key: storage.put(key, self.out_dir / name))  # type: ignore[misc]
        examples = in_scan_order(dataset.examples)
        at = {example.name: number for number, example in enumerate(examples)}
        for number, mistake in enumerate(mistakes):
            around, index = _around(examples, at[mistake.filename])
            shown = around.slices[index]
            (heat,) = predictor.heatmaps(around, [index])
            for layer, picture in (
                ("", render(shown, MISTAKE_PX)),
                ("-heat", overlay(heat, MISTAKE_PX)),
            ):
                content = BytesIO()
                picture.save(content, "PNG")
                key, written = self.row.mistake_key(number, layer), content.getvalue()
                retry_storage(lambda key=key, written=written: storage.put(key, written))  # type: ignore[misc]
        storage.discard(self._partial_key)

    def _finish(self, columns: dict[str, Any]) -> bool:
        if not leases.finish(Evaluation, self._owner, [self.row.id], **columns):
            return False
        request_comparisons_after(self.row.version_id, self.row.dataset_id)
        return True

    def _tell(self, what: str, done: int, total: int) -> None:
        if heartbeat().stopping():
            raise EvaluationStopped
        if time.monotonic() - self._written_at < WRITE_EVERY_S:
            return
        start, share = SHARES[what]
        columns = {
            "progress": start + share * done / max(total, 1),
            "stage": f"{what} {done} of {total}",
        }
        if not in_transaction(
            lambda: leases.write(Evaluation, self._owner, [self.row.id], **columns)
        ):
            raise LeaseLost
        self._written_at = time.monotonic()

    @property
    def _partial_key(self) -> str:
        return f"{self.row.storage_prefix}/{PARTIAL}"

    def _fetch_partial(self) -> None:
        try:
            retry_storage(lambda: storage.fetch(self._partial_key, self.out_dir / PARTIAL))
        except MissingFile:
            return  # There is nothing to resume.

    def _keep_partial(self) -> None:
        """Store the scores so far, if the storage is available; otherwise they are computed
        again.
        """
        partial = self.out_dir / PARTIAL
        if partial.is_file():
            try:
                storage.put(self._partial_key, partial)
            except StorageError as err:
                log.warning("evaluation=%s starts over: %s", self.row.id, type(err).__name__)

    def _let_go(self) -> None:
        """Abandon an evaluation that this worker no longer holds; delete its files if it was
        canceled, or deleted with its data set.
        """
        status = in_transaction(
            lambda: db.session.scalar(select(Evaluation.status).where(Evaluation.id == self.row.id))
        )
        if status in (JobStatus.CANCELLED, None):
            storage.discard(self.row.storage_prefix)
            log.info("evaluation=%s was cancelled", self.row.id)
        else:
            log.warning("evaluation=%s was lost to another worker", self.row.id)

    def _fail(self, sentence: str) -> None:
        if not in_transaction(
            lambda: leases.fail(Evaluation, self._owner, {self.row.id: sentence})
        ):
            self._let_go()


def _around(examples: Sequence[Example], at: int) -> tuple[Series, int]:
    """Return the slices of a scan that are needed for a heat map of one of them, and its index
    among them; the examples are in the order of their scans.
    """
    near = range(max(at - NEIGHBORS, 0), min(at + NEIGHBORS + 1, len(examples)))
    of_scan = [number for number in near if scan_key(examples[number]) == scan_key(examples[at])]
    slices = tuple(slice_of(examples[number], may_be_bare=True) for number in of_scan)
    return Series(slices), of_scan.index(at)
