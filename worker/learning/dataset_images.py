"""Indexes the images of a data set: a row and a thumbnail for each, near-duplicates, and the
features for probes of sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select

from ml.datasets.examples import Example, scan_key
from ml.datasets.pool import numbered
from ml.datasets.read import Dataset
from ml.exploration.images import ImageFacts, image_facts
from ml.exploration.shortcuts import Measured, sample_of, write_sample
from ml.exploration.summary import measure_all
from ml.scans.slices import Slice, render
from webapp.extensions import db
from webapp.models import DUPLICATE, DatasetImage, DatasetPair, sample_file, thumbnails_file
from webapp.storage import storage
from worker.leases import LeaseLost
from worker.retries import in_transaction, retry_disk, retry_storage

THUMBNAIL_PX, THUMBNAIL_QUALITY = 144, 85
ROWS_AT_ONCE = 500
THUMBNAILS, SAMPLE = "thumbnails", "sample.npz"


@dataclass
class Described:
    """The images of a data set with their measurements, and their thumbnails in a file in
    `folder`.

    Attributes:
        opened: the data set.
        root: the folder that its archive was unpacked to.
        folder: a temporary folder.
        measured: the measurements of each image.
        places: offset and size in bytes of each thumbnail in the file.
    """

    opened: Dataset
    root: Path
    folder: Path
    measured: list[Measured] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def measure(self, on_image: Callable[[int, int], None]) -> None:
        """Measure each image and make its thumbnail, one at a time."""
        with (self.folder / THUMBNAILS).open("wb") as file:

            def on_slice(_: Example, slice_: Slice) -> None:
                content = BytesIO()
                picture = render(slice_, THUMBNAIL_PX)
                picture.save(content, "JPEG", quality=THUMBNAIL_QUALITY)
                self.places.append((file.tell(), content.tell()))
                retry_disk(lambda: file.write(content.getvalue()))

            self.measured = measure_all(self.opened, on_image, on_slice)

    def store(
        self, dataset_id: str, still_mine: Callable[[], object], on_part: Callable[[int, int], None]
    ) -> None:
        """Store files and rows, replacing those of a failed attempt.

        Args:
            dataset_id: the data set.
            still_mine: called in each transaction; returns False if another worker has the job.
            on_part: called with (images written, number of images); raises to interrupt.

        Raises:
            LeaseLost: another worker has the job, or it was canceled.
            StorageError: the storage fails.
        """

        def write(action: Callable[[], object]) -> None:
            def require_lease() -> None:
                if not still_mine():
                    raise LeaseLost
                action()

            in_transaction(require_lease)

        write_sample(sample_of(self.opened.examples, self.measured), self.folder / SAMPLE)
        retry_storage(lambda: storage.put(thumbnails_file(dataset_id), self.folder / THUMBNAILS))
        retry_storage(lambda: storage.put(sample_file(dataset_id), self.folder / SAMPLE))
        write(lambda: forget_images(dataset_id))
        total = len(self.opened.examples) + len(self.opened.unread)
        written = 0
        for rows in _chunks(self._rows(dataset_id)):
            write(lambda rows=rows: db.session.execute(insert(DatasetImage), rows))  # type: ignore[misc]
            written += len(rows)
            on_part(written, total)
        for pairs in _chunks(self._pairs(dataset_id)):
            write(lambda pairs=pairs: db.session.execute(insert(DatasetPair), pairs))  # type: ignore[misc]

    def _rows(self, dataset_id: str) -> Iterator[dict[str, Any]]:
        examples = (*self.opened.examples, *self.opened.unread)
        scans = numbered([scan_key(example) for example in examples])
        doubled = {name for pair in self.opened.near_duplicates for name in pair}
        for number, facts in enumerate(image_facts(self.opened, self.measured, self.root)):
            place = self.places[number] if number < len(self.places) else (None, None)
            yield {
                **_columns(facts, facts.example.name in doubled),
                "dataset_id": dataset_id,
                "number": number,
                "scan": int(scans[number]) + 1 if facts.example.patient else None,
                "thumbnail_at": place[0],
                "thumbnail_bytes": place[1],
            }

    def _pairs(self, dataset_id: str) -> Iterator[dict[str, Any]]:
        number_of = {example.name: at for at, example in enumerate(self.opened.examples)}
        numbers = {
            (number_of[first], number_of[second])
            for pair in self.opened.near_duplicates
            for first, second in (pair, pair[::-1])
        }
        for number, other in sorted(numbers):
            yield {"dataset_id": dataset_id, "number": number, "other": other}


def _columns(facts: ImageFacts, is_doubled: bool) -> dict[str, Any]:
    example = facts.example
    kinds = dict.fromkeys(problem.kind for problem in facts.problems)
    return {
        "name": example.name,
        "label": example.label,
        "patient": facts.patient,
        "group": facts.group,
        "slice": example.slice,
        "place_mm": example.place_mm,
        "scan_label": example.scan_label,
        "types": None if example.types is None else bounded_by_bars(sorted(example.types)),
        "source": facts.source,
        "width": example.width,
        "height": example.height,
        "mode": example.mode,
        "bytes": facts.bytes,
        "sha256": example.sha256,
        "dhash": example.dhash,
        "gray": facts.gray,
        "head_share": facts.head_share,
        "problems": [[problem.kind, problem.sentence] for problem in facts.problems],
        "kinds": bounded_by_bars([*kinds, *([DUPLICATE] if is_doubled else [])]),
        "files": list(facts.files),
        "mask": facts.mask,
    }


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        yield chunk


def bounded_by_bars(words: Sequence[str]) -> str:
    """Return words in the form "|one|two|", in which each can be searched for; "" for none."""
    return f"|{'|'.join(words)}|" if words else ""


def forget_images(dataset_id: str) -> None:
    """Delete the rows of the images of a data set; the caller commits."""
    for table in (DatasetPair, DatasetImage):
        db.session.execute(delete(table).where(table.dataset_id == dataset_id))


def examples_of(dataset_id: str, dataset_name: str) -> tuple[list[Example], list[tuple[str, str]]]:
    """Return the readable images of a data set as returned by `ml.datasets.read`, without their
    files, and the pairs of names of near-duplicates.
    """
    rows = db.session.scalars(
        select(DatasetImage)
        .where(DatasetImage.dataset_id == dataset_id)
        .order_by(DatasetImage.number)
    ).all()
    if not rows:
        return [], []
    first_of_group: dict[int | None, str] = {}
    examples = []
    for row in rows:
        if row.group is None:  # It could not be read.
            continue
        first = first_of_group.setdefault(row.group, row.name)
        examples.append(
            Example(
                Path(row.name),
                row.name,
                row.label,
                None if row.patient is None else str(row.patient),
                row.slice,
                f"{dataset_name}/{first}",
                dataset_name,
                sha256=row.sha256,
                dhash=row.dhash,
                scan_label=row.scan_label,
                scan="" if row.scan is None else str(row.scan),
                place_mm=row.place_mm,
            )
        )
    pairs = db.session.execute(
        select(DatasetPair.number, DatasetPair.other).where(
            DatasetPair.dataset_id == dataset_id, DatasetPair.number < DatasetPair.other
        )
    )
    return examples, [(rows[first].name, rows[second].name) for first, second in pairs]
