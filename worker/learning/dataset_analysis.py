"""Analyzes data sets for administrators: an index of the images, a preview of the split, and how
well simple features distinguish two data sets.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import aliased, joinedload

from ml.errors import DatasetError
from ml.exploration.images import distributions
from ml.exploration.shortcuts import Sample, read_sample, source_probes
from ml.exploration.splits import preview_split
from ml.typed_json import to_json
from webapp.extensions import db
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    DatasetImage,
    sample_file,
    thumbnails_file,
)
from webapp.storage import StorageError, StorageUnavailable, storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.learning.dataset_images import Described, examples_of
from worker.learning.dataset_import import (
    LOOK_S,
    MEASURING,
    READING,
    STORING,
    UNPACKING,
    ImportStopped,
    fetch_dataset,
)
from worker.leases import LeaseLost
from worker.retries import in_transaction, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

PARTS = (UNPACKING, READING, MEASURING, STORING)
NOT_INDEXED = "The images of {} are not indexed yet. Open its Images page first."
UNEXPECTED = "An unexpected error occurred; see the log for details."


def analyze_next_dataset() -> bool:
    """Claim an analysis of a data set and compute it, or return it to the queue if the worker
    stops; return False if none was queued.
    """
    mine = heartbeat()

    def claim() -> DatasetAnalysis | None:
        claimed = leases.claim(DatasetAnalysis, mine.owner)
        if not claimed:
            return None
        both = (joinedload(DatasetAnalysis.dataset), joinedload(DatasetAnalysis.other))
        return db.session.scalar(
            select(DatasetAnalysis).where(DatasetAnalysis.id == claimed[0].id).options(*both)
        )

    row = in_transaction(claim)
    if row is None:
        return False
    with mine.holding(DatasetAnalysis, [row.id]), mine.work_folder() as folder:
        _carry_through(row, folder)
    return True


def _carry_through(row: DatasetAnalysis, folder: Path) -> None:
    # Read now, because the row may be deleted with its data set.
    owner, id, kind = heartbeat().owner, row.id, row.kind
    ids = [id]
    try:
        result = ANSWERS[kind](row, folder)
        if not in_transaction(lambda: leases.finish(DatasetAnalysis, owner, ids, result=result)):
            raise LeaseLost
        log.info("analysis=%s done", id)
    except LeaseLost:
        log.info("analysis=%s was deleted with its data set or is another worker's", id)
    except (ImportStopped, StorageUnavailable):
        in_transaction(lambda: leases.hand_back(DatasetAnalysis, owner, ids))
    except (DatasetError, StorageError) as err:
        sentences = {id: str(err)}
        end = leases.retry_after_storage_error if is_passing(err) else leases.fail
        in_transaction(lambda: end(DatasetAnalysis, owner, sentences))
    except Exception:
        log.error("analysis=%s failed unexpectedly", id)
        in_transaction(lambda: leases.fail(DatasetAnalysis, owner, {id: UNEXPECTED}))
        raise


def _index_images(row: DatasetAnalysis, folder: Path) -> None:
    """Index the images of a data set that was imported before imports did this."""
    looked_at, id, dataset_id = float("-inf"), row.id, row.dataset_id

    def tell(what: str, done: int, total: int) -> None:
        nonlocal looked_at
        if heartbeat().stopping():
            raise ImportStopped
        if time.monotonic() - looked_at < LOOK_S:
            return
        columns = {
            "progress": (PARTS.index(what) + done / max(total, 1)) / len(PARTS),
            "stage": f"{what} {done} of {total}",
        }
        if not in_transaction(
            lambda: leases.write(DatasetAnalysis, heartbeat().owner, [id], **columns)
        ):
            raise LeaseLost
        looked_at = time.monotonic()

    dataset = row.dataset
    opened = fetch_dataset(dataset, folder, tell)
    described = Described(opened, folder / dataset_id, folder)
    described.measure(partial(tell, MEASURING))
    try:
        described.store(
            dataset_id,
            lambda: leases.renew(DatasetAnalysis, heartbeat().owner, [id]),
            partial(tell, STORING),
        )
    except LeaseLost:
        _discard_without_dataset(dataset_id)
        raise
    shares = distributions(opened.examples, described.measured)

    def add() -> None:
        locked = db.session.get(Dataset, dataset_id, with_for_update=True)
        if locked is not None:
            locked.exploration = {**(locked.exploration or {}), "distributions": shares}

    in_transaction(add)


def _discard_without_dataset(dataset_id: str) -> None:
    """Delete the files that were stored for a data set which was deleted meanwhile; if it exists,
    they are another worker's.
    """
    exists = select(Dataset.id).where(Dataset.id == dataset_id)
    if in_transaction(lambda: db.session.scalar(exists)) is None:
        storage.discard(thumbnails_file(dataset_id))
        storage.discard(sample_file(dataset_id))


def _split(row: DatasetAnalysis, _: Path) -> dict[str, Any]:
    """Return `ml.exploration.splits.SplitPreview` as JSON."""
    settings = dict(part.split("=") for part in row.question.split())
    dataset = row.dataset
    examples, pairs = in_transaction(lambda: examples_of(dataset.id, dataset.name))
    if not examples:
        raise DatasetError(NOT_INDEXED.format(dataset.name))
    preview = preview_split(
        dataset.name, examples, pairs, int(settings["folds"]), int(settings["seed"])
    )
    result: dict[str, Any] = to_json(preview)
    return result


def _compare_sources(row: DatasetAnalysis, folder: Path) -> dict[str, Any]:
    """Return {"probes": how well simple features distinguish two data sets
    (`ml.exploration.shortcuts.source_probes`), "shared": how many different files are in both}.
    """
    dataset, other = row.dataset, row.other
    if other is None:
        raise LeaseLost
    samples = (_sample(dataset, folder), _sample(other, folder))
    return {
        "probes": source_probes((dataset.name, other.name), samples),
        "shared": in_transaction(lambda: _shared_files(dataset.id, other.id)),
    }


def _sample(dataset: Dataset, folder: Path) -> Sample:
    path = folder / f"{dataset.id}.npz"
    retry_storage(lambda: storage.fetch(sample_file(dataset.id), path))
    return read_sample(path)


def _shared_files(one_id: str, other_id: str) -> int:
    other = aliased(DatasetImage)
    both = (
        select(func.count(DatasetImage.sha256.distinct()))
        .select_from(DatasetImage)
        .join(other, other.sha256 == DatasetImage.sha256)
        .where(
            DatasetImage.dataset_id == one_id,
            other.dataset_id == other_id,
            DatasetImage.sha256 != "",
        )
    )
    return db.session.scalar(both) or 0


ANSWERS = {
    AnalysisKind.IMAGES: _index_images,
    AnalysisKind.SPLIT: _split,
    AnalysisKind.SOURCES: _compare_sources,
}
