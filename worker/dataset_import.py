"""Data sets that an admin imports: unpacked, read and explored before they count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from flask import current_app
from sqlalchemy import select

from ml.datasets import read as datasets
from ml.datasets.archive import unpack
from ml.errors import DatasetError
from ml.exploration import summary
from ml.exploration.report import contact_sheet
from ml.scans.slices import Series
from webapp.extensions import db
from webapp.models import Dataset, JobStatus
from webapp.storage import StorageAway, StorageError, storage
from worker import leases
from worker.decoder import BeyondLimits, decode
from worker.heartbeat import presence
from worker.leases import LeaseLost
from worker.retries import in_transaction, retry_disk, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

Told = Callable[[str, int, int], None]
"""Hears what goes on, how many parts of it are done, and of how many."""

UNPACKING, READING, MEASURING, PROBING = PARTS = (
    "Unpacking file",
    "Reading image",
    "Measuring image",
    "Trying shortcut",
)
MOST_BEYOND_LIMITS = 10
"""Images of one data set that may take longer than is allowed: an archive of such would keep a
worker for days.
"""
LOOK_S = 1.0
"""How often progress is written and the lease looked at: an import that was cancelled ends within a
second and a part.
"""


class ImportStopped(Exception):
    """This worker was asked to stop; the data set goes back to the queue."""


def import_next_dataset() -> bool:
    """Claim one queued data set and end it as ready or with a sentence, or hand it back; False if
    none was queued.
    """
    mine = presence()
    claimed = in_transaction(lambda: leases.claim(Dataset, mine.owner))
    if not claimed:
        return False
    dataset = claimed[0]
    with mine.holding(Dataset, [dataset.id]):
        try:
            found = look_into(dataset)
            if not in_transaction(
                lambda: leases.finish(Dataset, mine.owner, [dataset.id], **found)
            ):
                raise LeaseLost
            log.info("dataset=%s imported", dataset.id)
        except (ImportStopped, StorageAway):
            in_transaction(lambda: leases.hand_back(Dataset, mine.owner, [dataset.id]))
        except LeaseLost:
            let_go(dataset)
        except (DatasetError, StorageError) as err:
            sentence = str(err)
            if is_passing(err):
                in_transaction(lambda: leases.refuse(Dataset, mine.owner, {dataset.id: sentence}))
            elif in_transaction(
                lambda: leases.fail(Dataset, mine.owner, {dataset.id: sentence})
            ) and isinstance(err, DatasetError):
                # It will never be read again.
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


def let_go(dataset: Dataset) -> None:
    """Leave a data set that this worker no longer holds; of one that was cancelled, and perhaps
    deleted, nothing stays.
    """
    status = in_transaction(
        lambda: db.session.scalar(select(Dataset.status).where(Dataset.id == dataset.id))
    )
    if status in (JobStatus.CANCELLED, None):
        storage.discard(sheet_key(dataset))
        log.info("dataset=%s was cancelled", dataset.id)
    else:
        log.warning("dataset=%s was lost to another worker", dataset.id)


def look_into(dataset: Dataset) -> dict[str, object]:
    """Return the columns that describe a data set, after storing its contact sheet.

    Raises:
        DatasetError: it cannot be used.
        StorageError: its archive cannot be fetched, or the sheet not stored.
        ImportStopped: this worker is to stop.
        LeaseLost: it was cancelled, or is another worker's.
    """
    mine = presence()
    looked_at = float("-inf")

    def tell(what: str, done: int, total: int) -> None:
        nonlocal looked_at
        if mine.stopping():
            raise ImportStopped
        if time.monotonic() - looked_at >= LOOK_S:
            columns = {
                "progress": (PARTS.index(what) + done / total) / len(PARTS),
                "stage": f"{what} {done} of {total}",
            }
            if not in_transaction(
                lambda: leases.write(Dataset, mine.owner, [dataset.id], **columns)
            ):
                raise LeaseLost
            looked_at = time.monotonic()

    with mine.work_folder() as folder:
        opened = fetch_dataset(dataset, folder, tell)
        sheet = BytesIO()
        contact_sheet(opened).save(sheet, "PNG")
        measured = summary.measure_all(opened, partial(tell, MEASURING))
        explored = summary.explore(opened, measured, partial(tell, PROBING))
    retry_storage(lambda: storage.put(sheet_key(dataset), sheet.getvalue()))
    return {
        "fingerprint": opened.fingerprint,
        "exploration": explored,
        "contact_sheet_key": sheet_key(dataset),
    }


def sheet_key(dataset: Dataset) -> str:
    """Return where the contact sheet of a data set is stored."""
    return f"sheets/{dataset.id}.png"


def fetch_dataset(dataset: Dataset, folder: Path, on_part: Told) -> datasets.Dataset:
    """Fetch a data set's archive, unpack it in `folder` and read it; `on_part` hears of files and
    images.

    An image that harms whoever decodes it is left out like any that cannot be read. What is decoded
    again later was read here first.

    Raises:
        DatasetError: it cannot be used.
        StorageError: it cannot be fetched.
    """
    archive = folder / "archive.zip"
    retry_storage(lambda: storage.fetch(dataset.archive_key, archive))
    max_bytes = current_app.config["MAX_DATASET_MB"] * 2**20
    root = unpack(
        archive, folder / dataset.id, max_bytes=max_bytes, on_file=partial(on_part, UNPACKING)
    )
    archive.unlink()
    return datasets.read_dataset(
        root, dataset.name, partial(on_part, READING), decode=_reader_with_limits()
    )


def _reader_with_limits() -> Callable[..., Series]:
    """Return what reads the images of one data set as `ml.scans.read.read_series` does, in the
    decoder's child.
    """
    beyond = 0

    def read(paths: Sequence[Path], **limits: int) -> Series:
        nonlocal beyond
        try:
            return retry_disk(lambda: decode(paths, redact=False, **limits))
        except BeyondLimits as err:
            beyond += 1
            if beyond > MOST_BEYOND_LIMITS:
                many = f"More than {MOST_BEYOND_LIMITS} images, {paths[0].name} the last,"
                raise DatasetError(
                    f"{many} could not be decoded within the limits on time and memory."
                ) from err
            raise

    return read
