"""Imports data sets: unpacks, reads and explores them. One made from confirmed scans is built
first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from flask import current_app
from sqlalchemy import select

from ml.datasets.archive import unpack
from ml.datasets.pool import unseen_groups
from ml.datasets.read import Dataset as LoadedDataset
from ml.datasets.read import read_dataset
from ml.errors import DatasetError
from ml.exploration import summary
from ml.exploration.report import contact_sheet
from ml.scans.slices import Series
from webapp.extensions import database_now, db
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    JobStatus,
    analysis_of,
    sample_file,
    thumbnails_file,
)
from webapp.storage import StorageError, StorageUnavailable, storage
from worker import leases
from worker.decoder import BeyondLimits, decode
from worker.heartbeat import heartbeat
from worker.learning.confirmed_dataset import COLLECTING, make_archive
from worker.learning.dataset_images import Described, forget_images
from worker.leases import LeaseLost
from worker.retries import in_transaction, retry_disk, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

OnPart = Callable[[str, int, int], None]
"""Called with the current step, the number of its finished parts, and the number of all parts."""

UNPACKING, READING, MEASURING, PROBING, STORING = PARTS = (
    "Unpacking file",
    "Reading image",
    "Measuring image",
    "Testing shortcut",
    "Storing image",
)
PARTS_OF_MADE = (COLLECTING, *PARTS)
MOST_BEYOND_LIMITS = 10
"""Number of images of a data set that may exceed the limits; an archive full of them would keep a
worker busy for days.
"""
LOOK_S = 1.0
"""How often progress is written and the lease checked, and therefore how soon a canceled import
ends.
"""


class ImportStopped(Exception):
    """This worker was asked to stop; the data set returns to the queue."""


def import_next_dataset() -> bool:
    """Claim a queued data set and import it, or return it to the queue if the worker stops; return
    False if none was queued.
    """
    mine = heartbeat()
    claimed = in_transaction(lambda: leases.claim(Dataset, mine.owner))
    if not claimed:
        return False
    dataset = claimed[0]
    with mine.holding(Dataset, [dataset.id]):
        try:
            facts = look_into(dataset)
            if not in_transaction(lambda: _finish(dataset, facts)):
                raise LeaseLost
            log.info("dataset=%s imported", dataset.id)
        except (ImportStopped, StorageUnavailable):
            in_transaction(lambda: leases.hand_back(Dataset, mine.owner, [dataset.id]))
        except LeaseLost:
            let_go(dataset)
        except (DatasetError, StorageError) as err:
            sentence = str(err)
            if is_passing(err):
                in_transaction(
                    lambda: leases.retry_after_storage_error(
                        Dataset, mine.owner, {dataset.id: sentence}
                    )
                )
            else:
                failed = in_transaction(
                    lambda: leases.fail(Dataset, mine.owner, {dataset.id: sentence})
                )
                # No longer needed, unless the previous version of the data set shares the archive.
                if failed and isinstance(err, DatasetError) and dataset.corrections is None:
                    retry_storage(lambda: storage.delete(dataset.archive_key))
        except Exception:
            log.error("dataset=%s failed unexpectedly", dataset.id)
            sentence = (
                "An unexpected error occurred while importing this data set; see the log for"
                " details."
            )
            in_transaction(lambda: leases.fail(Dataset, mine.owner, {dataset.id: sentence}))
            raise
    return True


def _finish(dataset: Dataset, facts: dict[str, object]) -> bool:
    """Record that the data set can be used, and that its images are indexed."""
    if not leases.finish(Dataset, heartbeat().owner, [dataset.id], **facts):
        return False
    if analysis_of(dataset.id, AnalysisKind.IMAGES) is None:
        db.session.add(
            DatasetAnalysis(
                kind=AnalysisKind.IMAGES,
                dataset_id=dataset.id,
                question="",
                status=JobStatus.DONE,
                progress=1.0,
                finished_at=database_now(),
            )
        )
    return True


def let_go(dataset: Dataset) -> None:
    """Abandon a data set that this worker no longer holds; delete the contact sheet if it was
    canceled or deleted.
    """
    status = in_transaction(
        lambda: db.session.scalar(select(Dataset.status).where(Dataset.id == dataset.id))
    )
    if status in (JobStatus.CANCELLED, None):
        for key in (sheet_key(dataset), thumbnails_file(dataset.id), sample_file(dataset.id)):
            storage.discard(key)
        in_transaction(lambda: forget_images(dataset.id))
        if dataset.made_from is not None:
            storage.discard(dataset.archive_key)
        log.info("dataset=%s was cancelled", dataset.id)
    else:
        log.warning("dataset=%s was lost to another worker", dataset.id)


def look_into(dataset: Dataset) -> dict[str, object]:
    """Explore a data set and store its contact sheet; return the columns that describe it.

    Raises:
        DatasetError: it cannot be used.
        StorageError: its archive cannot be downloaded, or the contact sheet cannot be stored.
        ImportStopped: this worker was asked to stop.
        LeaseLost: it was canceled, or another worker has it.
    """
    mine = heartbeat()
    looked_at = float("-inf")
    parts = PARTS if dataset.made_from is None else PARTS_OF_MADE

    def tell(what: str, done: int, total: int) -> None:
        nonlocal looked_at
        if mine.stopping():
            raise ImportStopped
        if time.monotonic() - looked_at >= LOOK_S:
            columns = {
                "progress": (parts.index(what) + done / total) / len(parts),
                "stage": f"{what} {done} of {total}",
            }
            if not in_transaction(
                lambda: leases.write(Dataset, mine.owner, [dataset.id], **columns)
            ):
                raise LeaseLost
            looked_at = time.monotonic()

    with mine.work_folder() as folder:
        notes = [] if dataset.made_from is None else make_archive(dataset, folder, tell)
        # A data set of one class cannot be used for training by itself, but it can be pooled with
        # others or used for evaluation.
        opened = fetch_dataset(dataset, folder, tell, needs_both_classes=False)
        sheet = BytesIO()
        contact_sheet(opened).save(sheet, "PNG")
        described = Described(opened, folder / dataset.id, folder)
        described.measure(partial(tell, MEASURING))
        explored = summary.explore(opened, described.measured, partial(tell, PROBING))
        described.store(dataset.id, partial(_is_held, dataset.id), partial(tell, STORING))
    explored["unseen_groups"] = unseen_groups(opened)
    explored["problems"] = [*notes, *explored["problems"]]
    retry_storage(lambda: storage.put(sheet_key(dataset), sheet.getvalue()))
    return {
        "fingerprint": opened.fingerprint,
        "exploration": explored,
        "contact_sheet_key": sheet_key(dataset),
    }


def _is_held(dataset_id: str) -> bool:
    """Renew the lease of a data set; return False if it is lost."""
    return bool(leases.renew(Dataset, heartbeat().owner, [dataset_id]))


def sheet_key(dataset: Dataset) -> str:
    """Return the storage key of a data set's contact sheet."""
    return f"sheets/{dataset.id}.png"


def fetch_dataset(dataset: Dataset, folder: Path, on_part: OnPart, **how: bool) -> LoadedDataset:
    """Download a data set's archive, unpack it in `folder` and read it; `on_part` is called for
    each file and image, and `how` is passed to `ml.datasets.read.read_dataset`.

    Images that exceed the decoder's limits are left out like unreadable ones, so that later steps
    only decode images that were decoded here.

    Raises:
        DatasetError: it cannot be used.
        StorageError: it cannot be downloaded.
    """
    archive = folder / "archive.zip"
    retry_storage(lambda: storage.fetch(dataset.archive_key, archive))
    max_bytes = current_app.config["MAX_DATASET_MB"] * 2**20
    root = unpack(
        archive, folder / dataset.id, max_bytes=max_bytes, on_file=partial(on_part, UNPACKING)
    )
    archive.unlink()
    on_image = partial(on_part, READING)
    return read_dataset(
        root,
        dataset.name,
        on_image,
        decode=_reader_with_limits(),
        corrections=dataset.corrected_labels,
        **how,
    )


def _reader_with_limits() -> Callable[..., Series]:
    """Return a reader for the images of a data set, like `ml.scans.read.read_series` but in the
    decoder's child process.
    """
    beyond = 0

    def read(paths: Sequence[Path], **limits: int) -> Series:
        nonlocal beyond
        try:
            return retry_disk(lambda: decode(paths, redact=False, **limits))
        except BeyondLimits as err:
            beyond += 1
            if beyond > MOST_BEYOND_LIMITS:
                raise DatasetError(
                    f"More than {MOST_BEYOND_LIMITS} images, most recently {paths[0].name}, could"
                    " not be decoded within the limits on time and memory."
                ) from err
            raise

    return read
