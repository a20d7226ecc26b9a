"""Data sets that an admin imports: unpacked, read and explored before they count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from flask import current_app

from ml import datasets, exploration
from ml.datasets import DatasetError
from webapp.models import Dataset
from webapp.storage import StorageError, storage
from worker import leases
from worker.patience import committed, stored
from worker.presence import presence

log = logging.getLogger(__name__)


class ImportStopped(Exception):
    """This worker was asked to stop; the data set goes back to the queue."""


def import_next_dataset() -> bool:
    """Claim one queued data set and end it as ready or with a sentence, or hand it back; False if none was queued."""
    mine = presence()
    claimed = committed(lambda: leases.claim(Dataset, mine.owner))
    if not claimed:
        return False
    dataset = claimed[0]
    with mine.holding(Dataset, [dataset.id]):
        try:
            found = look_into(dataset)
        except ImportStopped:
            committed(lambda: leases.hand_back(Dataset, mine.owner, [dataset.id]))
        except (DatasetError, StorageError) as err:
            sentence = str(err)
            if committed(lambda: leases.fail(Dataset, mine.owner, {dataset.id: sentence})) and isinstance(err, DatasetError):
                stored(lambda: storage.delete(dataset.archive_key))  # It will never be read again.
        except Exception:
            log.error("dataset=%s failed unexpectedly", dataset.id)
            sentence = "Something unexpected went wrong while this data set was read; the log has the details."
            committed(lambda: leases.fail(Dataset, mine.owner, {dataset.id: sentence}))
            raise
        else:
            committed(lambda: leases.finish(Dataset, mine.owner, [dataset.id], **found))
            log.info("dataset=%s imported", dataset.id)
    return True


def look_into(dataset: Dataset) -> dict[str, object]:
    """Return the columns that describe a data set, after storing its contact sheet.

    Raises:
        DatasetError: it cannot be used.
        StorageError: its archive cannot be fetched, or the sheet not stored.
        ImportStopped: this worker is to stop.
    """
    mine = presence()
    written_at = 0.0

    def tell(done: int, total: int, what: str = "Reading", share: int = 0) -> None:
        nonlocal written_at
        if mine.stopping():
            raise ImportStopped
        if time.monotonic() - written_at >= 1:
            written_at = time.monotonic()
            columns = {"progress": (share + done / total) / 2, "stage": f"{what} image {done} of {total}"}
            committed(lambda: leases.write(Dataset, mine.owner, [dataset.id], **columns))

    with mine.work_folder() as folder:
        opened = fetch_dataset(dataset, folder, tell)
        sheet = BytesIO()
        datasets.contact_sheet(opened).save(sheet, "PNG")
        measured = exploration.measure_all(opened, lambda done, total: tell(done, total, "Measuring", 1))
        explored = exploration.explore(opened, measured)
    key = f"sheets/{dataset.id}.png"
    stored(lambda: storage.put(key, sheet.getvalue()))
    return {"fingerprint": opened.fingerprint, "exploration": explored, "contact_sheet_key": key}


def fetch_dataset(dataset: Dataset, folder: Path, on_image: Callable[[int, int], None]) -> datasets.Dataset:
    """Fetch a data set's archive, unpack it in `folder` and read it; `on_image` hears (images read, images in all).

    Raises:
        DatasetError: it cannot be used.
        StorageError: it cannot be fetched.
    """
    archive = folder / "archive.zip"
    stored(lambda: storage.fetch(dataset.archive_key, archive))
    max_bytes = current_app.config["MAX_DATASET_MB"] * 2**20
    root = datasets.unpack(archive, folder / dataset.id, max_bytes=max_bytes)
    archive.unlink()
    return datasets.read_dataset(root, dataset.name, on_image)
