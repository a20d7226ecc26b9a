"""Individual images of data sets, label corrections, analyses of data sets by workers, and images
that workers render for a page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    Text,
    UniqueConstraint,
    func,
    select,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models.accounts import User
from webapp.models.learning import Dataset
from webapp.models.leased import JobStatus, Leased, new_id

MOST_OPEN_PREVIEWS = 20
"""Maximum number of waiting previews: moving a slider requests many."""


class DatasetImage(db.Model):
    """One image of a data set, written by a worker that has read all of them.

    Images have the numbers 0, 1, ... in the order of the data set; unreadable ones come last and
    have neither sizes nor a thumbnail. Patients and groups are numbers too, so that no address
    reveals whose an image is.

    Attributes:
        name: path within the data set.
        label: 1 for hemorrhage, 0 for none, None if unknown.
        scan, slice, place_mm, scan_label: as in `ml.datasets.examples.Example`; `scan` as a number.
        types: the types of hemorrhage, "|subdural|"; None if not annotated.
        source: the outermost folder, if the data set has several sources.
        gray, head_share: as in `ml.exploration.images.ImageFacts`.
        problems: what is wrong with it, as [kind, sentence]; `kinds` contains the kinds, "|left
            out|", and `DUPLICATE` if it has near-duplicates.
        files, mask: members of the archive.
        thumbnail_at, thumbnail_bytes: offset and length of its thumbnail in the thumbnails file.
    """

    dataset_id: Mapped[str] = mapped_column(
        ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(Text)
    label: Mapped[int | None]
    patient: Mapped[int | None]
    group: Mapped[int | None] = mapped_column("group_number")
    scan: Mapped[int | None]
    slice: Mapped[int | None]
    place_mm: Mapped[float | None]
    scan_label: Mapped[int | None]
    types: Mapped[str | None] = mapped_column(String(120))
    source: Mapped[str] = mapped_column(Text)
    width: Mapped[int]
    height: Mapped[int]
    mode: Mapped[str] = mapped_column(String(16))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    dhash: Mapped[str] = mapped_column(String(64))
    gray: Mapped[float | None]
    head_share: Mapped[float | None]
    problems: Mapped[list[list[str]]] = mapped_column(JSON)
    kinds: Mapped[str] = mapped_column(String(120))
    files: Mapped[list[str]] = mapped_column(JSON)
    mask: Mapped[str | None] = mapped_column(Text)
    thumbnail_at: Mapped[int | None]
    thumbnail_bytes: Mapped[int | None]

    @property
    def position(self) -> int:
        """Its number as displayed, counted from 1."""
        return self.number + 1

    __table_args__ = (
        Index("ix_dataset_image_label", "dataset_id", "label", "number"),
        Index("ix_dataset_image_group", "dataset_id", "group_number", "number"),
    )


DUPLICATE = "near-duplicate"
"""The kind of an image that has near-duplicates."""


class DatasetPair(db.Model):
    """Two near-duplicates in a data set, by their numbers; each pair has two rows."""

    dataset_id: Mapped[str] = mapped_column(
        ForeignKey("dataset.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    other: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class LabelCorrection(db.Model):
    """A pending label correction, to be applied together with others as a new version of the data
    set.
    """

    dataset_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[int | None]
    reason: Mapped[str] = mapped_column(String(200))
    by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    by: Mapped[User | None] = relationship()
    image: Mapped[DatasetImage] = relationship()

    __table_args__ = (
        ForeignKeyConstraint(
            ["dataset_id", "number"],
            ["dataset_image.dataset_id", "dataset_image.number"],
            name="fk_label_correction_dataset_id_dataset_image",
            ondelete="CASCADE",
        ),
    )


class AnalysisKind(StrEnum):
    """The kinds of analysis: the individual images of a data set, how it would be split, and how it
    differs from another one.
    """

    IMAGES = "images"
    SPLIT = "split"
    SOURCES = "sources"


class DatasetAnalysis(Leased, db.Model):
    """An analysis of a data set by a train worker at an administrator's request; one row for each
    question, because data sets do not change. It is deleted with the data set.

    Attributes:
        question: distinguishes it from others of its kind: "" for the images, "folds=5 seed=0" for
            a split, the other data set's id for sources.
        other_id: the other data set.
        result: for a split `ml.exploration.splits.SplitPreview`, for sources {"probes", "shared"},
            as JSON.
    """

    kind: Mapped[AnalysisKind] = mapped_column(String(16))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    other_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    question: Mapped[str] = mapped_column(String(60))
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    dataset: Mapped[Dataset] = relationship(foreign_keys=[dataset_id])
    other: Mapped[Dataset | None] = relationship(foreign_keys=[other_id])

    __table_args__ = (
        Index(None, "status", "queued_at"),
        Index(None, "other_id"),
        UniqueConstraint("dataset_id", "kind", "question"),
    )


class Preview(Leased, db.Model):
    """Images that a predict worker renders from one slice for an administrator's page: in a window
    with its outline, or after each processing step. Rows and files are a cache: the least recently
    used are deleted.

    Attributes:
        key: a hash of what is shown, and how.
        what: the source of the slice: {"dataset", "image"}, {"scan", "slice"} or {"phantom"}.
        settings: how it is shown (`webapp.learning.previews`).
        result: steps as [{"name", "pictures": [[start, bytes], ...] in its file, "notes"}, ...].
        used_at: when it was last requested.
    """

    key: Mapped[str] = mapped_column(String(64), unique=True)
    dataset_id: Mapped[str | None] = mapped_column(
        ForeignKey("dataset.id", ondelete="CASCADE"), index=True
    )
    scan_id: Mapped[str | None] = mapped_column(
        ForeignKey("scan.id", ondelete="CASCADE"), index=True
    )
    what: Mapped[dict[str, Any]] = mapped_column(JSON)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    used_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, index=True)

    @property
    def file_key(self) -> str:
        """The storage key of the file with its images."""
        return preview_file(self.id)


def preview_file(preview_id: str) -> str:
    """Return the storage key of the file with the images of a preview."""
    return f"previews/{preview_id}.pack"


def thumbnails_file(dataset_id: str) -> str:
    """Return the storage key of the file with the thumbnails of a data set."""
    return f"tiles/{dataset_id}.pack"


def sample_file(dataset_id: str) -> str:
    """Return the storage key of the file with the measurements of a data set's images."""
    return f"samples/{dataset_id}.npz"


def analysis_of(dataset_id: str, kind: AnalysisKind, question: str = "") -> DatasetAnalysis | None:
    """Return the result of an analysis, or the job that computes it; None if nobody requested
    it.
    """
    return db.session.scalar(
        select(DatasetAnalysis).where(
            DatasetAnalysis.dataset_id == dataset_id,
            DatasetAnalysis.kind == kind,
            DatasetAnalysis.question == question,
        )
    )


def preview_key(what: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return a hash of what is shown, and how."""
    content = json.dumps([dict(what), dict(settings)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def open_previews() -> int:
    """Return the number of waiting previews."""
    waiting = select(func.count()).where(Preview.status == JobStatus.QUEUED)
    return db.session.scalar(waiting) or 0


def new_preview(what: Mapping[str, Any], settings: Mapping[str, Any]) -> Preview:
    """Add a queued preview; the caller commits and notifies a worker."""
    preview = Preview(
        id=new_id(),
        key=preview_key(what, settings),
        dataset_id=what.get("dataset"),
        scan_id=what.get("scan"),
        what=dict(what),
        settings=dict(settings),
        queued_at=database_now(),
    )
    db.session.add(preview)
    return preview
