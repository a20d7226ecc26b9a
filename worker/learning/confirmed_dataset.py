"""Builds the archive of a data set of confirmed scans, which is then imported like any other.

It identifies nobody: names are keyed hashes, files are written anew, and everything outside the
head is blacked out.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import delete, insert, select

from ml.datasets.writing import LabeledScan, write_manifest, write_scan
from ml.errors import DatasetError, ImageError
from webapp.extensions import db
from webapp.learning.confirmed import confirmed_scans, filter_of
from webapp.models import Dataset, Finding, Opinion, Scan, dataset_scan
from webapp.review.opinions import consensus_of
from webapp.storage import MissingFile, storage
from worker.retries import in_transaction, retry_disk, retry_storage
from worker.scan_files import read_original

COLLECTING = "Collecting scan"
NAME_DIGITS = 16


@dataclass(frozen=True)
class Labels:
    """The majority's labels of a scan; see `ml.datasets.writing.LabeledScan`."""

    label: int
    types: tuple[str, ...]
    slice_labels: dict[int, int]
    slice_types: dict[int, tuple[str, ...]]


def make_archive(
    dataset: Dataset, folder: Path, tell: Callable[[str, int, int], None]
) -> list[str]:
    """Store the archive of a data set of confirmed scans, and which scans are in it; return
    sentences about those that are left out.

    Args:
        dataset: its `made_from` says which scans.
        folder: a temporary folder.
        tell: called with the step, the number of finished scans, and the number of all scans.

    Raises:
        DatasetError: no such scan exists any more, or together they exceed the size limit of data
            sets.
        StorageError: the storage fails.
    """
    scans, labels = in_transaction(lambda: _choose(dataset))
    if not scans:
        raise DatasetError("The filters of this data set no longer match any confirmed scan.")
    root = folder / "confirmed"
    rows: list[dict[str, Any]] = []
    unreadable: set[str] = set()
    left_out = Counter[str]()
    for done, scan in enumerate(scans):
        tell(COLLECTING, done, len(scans))
        try:
            series = read_original(scan, redact=True)
        except (ImageError, MissingFile) as err:
            left_out[str(err)] += 1
            unreadable.add(scan.id)
            continue
        label = labels[scan.id]
        labeled = LabeledScan(
            _hidden("scan", scan.id),
            _hidden("study", scan.study_id),
            series,
            label.label,
            label.types,
            label.slice_labels,
            label.slice_types,
        )
        rows += retry_disk(lambda labeled=labeled: write_scan(root, labeled))  # type: ignore[misc]
        _require_fewer_bytes(root)
    if not rows:
        raise DatasetError("None of the confirmed scans can be read anymore.")
    write_manifest(root, rows)
    archive = retry_disk(lambda: _packed(root, folder / "confirmed.zip"))
    shutil.rmtree(root)
    in_transaction(lambda: _leave_out(dataset.id, unreadable))
    retry_storage(lambda: storage.put(dataset.archive_key, archive))
    archive.unlink()
    return [f"{count} confirmed scans were excluded: {why}" for why, count in left_out.items()]


def _choose(dataset: Dataset) -> tuple[list[Scan], dict[str, Labels]]:
    """Return the confirmed scans for a data set, and the labels of each.

    They are recorded as scans of the data set before any of them is read, and cannot be deleted or
    joined before that, so that training data can always be traced.
    """
    chosen = confirmed_scans(filter_of(dataset.made_from or {}))
    # Only writers of the row wait for this lock; reading and new opinions go on.
    scans = list(db.session.scalars(chosen.with_for_update(read=True, key_share=True, of=Scan)))
    _enter(dataset.id, scans)
    entered = select(dataset_scan.c.scan_id).where(dataset_scan.c.dataset_id == dataset.id)
    opinions: dict[str, list[Opinion]] = {}
    for opinion in db.session.scalars(select(Opinion).where(Opinion.scan_id.in_(entered))):
        opinions.setdefault(opinion.scan_id, []).append(opinion)
    labels = {
        scan_id: labels_of(of_scan)
        for scan_id, of_scan in opinions.items()
        if consensus_of(of_scan).finding is not None
    }
    # Opinions may be changed or withdrawn between the two reads.
    if unconfirmed := {scan.id for scan in scans} - labels.keys():
        _leave_out(dataset.id, unconfirmed)
    return [scan for scan in scans if scan.id in labels], labels


def _enter(dataset_id: str, scans: Sequence[Scan]) -> None:
    """Record the scans of a data set, replacing those of an interrupted attempt."""
    db.session.execute(delete(dataset_scan).where(dataset_scan.c.dataset_id == dataset_id))
    rows = [
        {"dataset_id": dataset_id, "scan_id": scan.id, "study_id": scan.study_id} for scan in scans
    ]
    if rows:
        db.session.execute(insert(dataset_scan), rows)


def _leave_out(dataset_id: str, scan_ids: Collection[str]) -> None:
    """Remove the records of scans that are left out of the data set."""
    db.session.execute(
        delete(dataset_scan).where(
            dataset_scan.c.dataset_id == dataset_id, dataset_scan.c.scan_id.in_(scan_ids)
        )
    )


def labels_of(opinions: Sequence[Opinion]) -> Labels:
    """Return the majority's labels for a confirmed scan and for its slices; a slice with a tie has
    no label. A type is included if most of those who see a hemorrhage name it.
    """
    of_slice: dict[int, list[Opinion]] = {}
    for opinion in opinions:
        if opinion.slice_index is not None:
            of_slice.setdefault(opinion.slice_index, []).append(opinion)
    slice_labels, slice_types = {}, {}
    for index, on_slice in of_slice.items():
        findings = [opinion.finding for opinion in on_slice]
        present, absent = findings.count(Finding.PRESENT), findings.count(Finding.ABSENT)
        if present != absent:
            slice_labels[index] = int(present > absent)
            slice_types[index] = _types_of(on_slice) if present > absent else ()
    whole = [opinion for opinion in opinions if opinion.slice_index is None]
    label = int(consensus_of(whole).finding == Finding.PRESENT)
    return Labels(
        label=label,
        types=_types_of(whole) if label else (),
        slice_labels=slice_labels,
        slice_types=slice_types,
    )


def _types_of(opinions: Sequence[Opinion]) -> tuple[str, ...]:
    named = [opinion.types for opinion in opinions if opinion.types]
    counts = Counter(name for types in named for name in types)
    return tuple(sorted(name for name, count in counts.items() if 2 * count > len(named)))


def _hidden(what: str, row_id: str) -> str:
    """Return a stable pseudonym for a row: a keyed hash of its id."""
    key = str(current_app.config["SECRET_KEY"]).encode()
    digest = hmac.new(key, f"data set {what} {row_id}".encode(), hashlib.sha256)
    return f"{what[0]}{digest.hexdigest()[:NAME_DIGITS]}"


def _require_fewer_bytes(root: Path) -> None:
    most_mb = current_app.config["MAX_DATASET_MB"]
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if size > most_mb * 2**20:
        raise DatasetError(
            f"The confirmed scans take more than {most_mb:,} MB, the limit for data sets. Please"
            " choose fewer."
        )


def _packed(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(root))
    return archive
