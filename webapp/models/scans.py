"""The scans that users submit."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from flask import current_app
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    ForeignKey,
    Index,
    String,
    delete,
    false,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from ml.verdict import State
from webapp.extensions import UtcDateTime, database_now, db
from webapp.models.accounts import User, lock_person
from webapp.models.leased import Attempt, JobStatus, Leased, new_id, queue_again, queue_index

if TYPE_CHECKING:
    from webapp.models.predictions import EarlierAnswer, Prediction

IN_ITS_TURN = (
    "You already have too many STAT scans waiting; this one was queued with normal priority."
)
ORIGINAL_REMOVED = "The scan cannot be analyzed again because its file is no longer stored."

CUT_OFF = "Slices may be missing because the connection was lost while this study was arriving."
CAME_EARLIER = "Other slices of this series arrived earlier and are part of another scan."
MORE_ARRIVED = "More of this series arrived later. Another scan has these slices and the new ones."
# Not by status: PostgreSQL would use the index for claims, and it does not have their order.
_OPEN = text("finished_at IS NULL")


class Scan(Leased, db.Model):
    """A slice or a series that a user submitted; these rows are the predict workers' queue.

    Its original is one stored file: the slice, a multi-frame file, or the files of a series in an
    uncompressed ZIP.

    Attributes:
        study_id: shared by the series of one examination. They share `created_at` too, so that they
            are adjacent in an index.
        kind: the file format: "png", "jpeg", "dicom" or "nifti".
        slice_count: according to the headers; some slices may turn out to be unreadable.
        size: bytes of the original.
        stat: whether the scan is analyzed before all routine scans.
        uncut: whether a film sheet is read as one image.
        study_uid: the Study Instance UID in the stored copy of DICOM files, to which objects made
            from the scan belong; None if there is none, or nobody has looked yet.
        dicom_results: whether DICOM objects are made from its result automatically, and kept with
            it.
        notes: remarks from the upload; sentences for its owner.
        replaces: the earlier scans of its series, of which more arrived later
            (`webapp.intake.completing`): a "sentence" about each, and its structured report that
            others may have: the id of the prediction that was "sent", and the UIDs of series and
            instance of the report that was "served" by DICOMweb.
        original_removed_at: when the original was deleted (KEEP_ORIGINALS_DAYS).
        image_key, thumbnail_key: the slice that represents the scan, rendered by the worker.
        volume_key: all slices of a series, for the viewer (`ml.scans.volume`).
        outline_key: what its model outlines, in the same frame; None if nothing is outlined.
        not_head_ct: 0..1; set if the scan failed because it does not look like a head CT.
        forced_at: when its owner requested the analysis anyway.
        risk, margin, verdict_state: the prediction's probability, its distance from the threshold,
            and its state, repeated here for the indexes of the worklist. Scans without a prediction
            come last in every order.
        opened_at: when its owner last opened its page, by the database's clock.
    """

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    study_id: Mapped[str] = mapped_column(String(32), default=new_id, server_default=text("''"))
    title: Mapped[str] = mapped_column(String(80), default="")
    kind: Mapped[str] = mapped_column(String(16))
    slice_count: Mapped[int] = mapped_column(default=1, server_default="1")
    size: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    stat: Mapped[bool] = mapped_column(default=False, server_default=false())
    uncut: Mapped[bool] = mapped_column(default=False, server_default=false())
    study_uid: Mapped[str | None] = mapped_column(String(64), index=True)
    dicom_results: Mapped[bool] = mapped_column(default=False, server_default=false())
    notes: Mapped[list[str] | None] = mapped_column(JSON)
    replaces: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    original_key: Mapped[str] = mapped_column(String(200))
    original_removed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    image_key: Mapped[str | None] = mapped_column(String(200))
    thumbnail_key: Mapped[str | None] = mapped_column(String(200))
    volume_key: Mapped[str | None] = mapped_column(String(200))
    outline_key: Mapped[str | None] = mapped_column(String(200))
    not_head_ct: Mapped[float | None]
    forced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    risk: Mapped[float] = mapped_column(default=0.0, server_default="0")
    margin: Mapped[float] = mapped_column(default=1.0, server_default="1")
    verdict_state: Mapped[State | None] = mapped_column(String(16))
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    user: Mapped[User] = relationship()
    prediction: Mapped[Prediction | None] = relationship(back_populates="scan")
    history: Mapped[list[Attempt]] = relationship(order_by=Attempt.id, passive_deletes=True)
    earlier_answers: Mapped[list[EarlierAnswer]] = relationship(
        order_by="EarlierAnswer.id.desc()", passive_deletes=True
    )

    __table_args__ = (
        Index(None, "status", "queued_at"),
        # For counting scans that finished after a worklist was opened.
        Index("ix_scan_finished", "user_id", "finished_at"),
        # For a user's unfinished scans, and how many of them are STAT.
        Index(
            "ix_scan_open", "user_id", "stat", "status", postgresql_where=_OPEN, sqlite_where=_OPEN
        ),
        queue_index("ix_scan_queue", stat.desc()),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return the column of the scan's owner."""
        return cls.user_id  # type: ignore[return-value]

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the name of the column that refers to a scan."""
        return "scan_id"

    @classmethod
    def urgency(cls) -> tuple[InstrumentedAttribute[bool], ...]:
        """Return the column that is true for STAT scans."""
        return (cls.stat,)  # type: ignore[return-value]

    @property
    def turnaround_s(self) -> float | None:
        """Seconds from the request for the newest analysis to its end; None until the scan is
        finished.
        """
        if self.finished_at is None:
            return None
        return (self.finished_at - max(self.created_at, self.queued_at)).total_seconds()

    @property
    def cautions(self) -> list[str]:
        """The notes which say that slices may be missing."""
        incomplete = (CUT_OFF, CAME_EARLIER, MORE_ARRIVED)
        return [note for note in self.notes or () if note in incomplete]

    @property
    def is_unread(self) -> bool:
        """Whether its owner has not opened its page since the analysis finished or failed."""
        return (
            self.status in (JobStatus.DONE, JobStatus.FAILED)
            and self.finished_at is not None
            and (self.opened_at is None or self.opened_at < self.finished_at)
        )

    @property
    def may_have_heat_maps(self) -> bool:
        """True if it was analyzed without heat maps, which can still be drawn."""
        return (
            self.prediction is not None
            and self.prediction.heatmap is None
            and self.original_removed_at is None
        )

    @property
    def may_be_scored_again(self) -> bool:
        """True if it was analyzed, and its original is still stored."""
        return self.status == JobStatus.DONE and self.original_removed_at is None

    @property
    def sheet_may_be(self) -> Literal["cut", "uncut"] | None:
        """The other way in which a film sheet can be read; None for other scans, and if the
        original is no longer stored.
        """
        if self.original_removed_at is not None or self.prediction is None:
            return None
        if self.uncut:
            return "cut"
        was_cut = self.slice_count == 1 and len(self.prediction.slices) > 1
        return "uncut" if was_cut and self.kind in ("png", "jpeg") else None

    @property
    def may_be_forced(self) -> bool:
        """Whether its owner may request the analysis anyway: it failed only because it does not
        look like a head CT, and its original is still stored.
        """
        return (
            self.status == JobStatus.FAILED
            and self.not_head_ct is not None
            and self.forced_at is None
            and self.original_removed_at is None
        )


class ReplacedScan(db.Model):
    """The id of a scan that was replaced, so that links to it lead to the scan that replaced it."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), index=True)


def lead_on(scan_ids: Collection[str], scan_id: str) -> None:
    """Let links to these scans, and links to those that they replaced, lead to the stored scan that
    replaces them; the caller deletes them afterward, and commits.
    """
    without_session = {"synchronize_session": False}
    leads_to_them, is_one = ReplacedScan.scan_id.in_(scan_ids), ReplacedScan.id.in_(scan_ids)
    moved = update(ReplacedScan).where(leads_to_them).values(scan_id=scan_id)
    db.session.execute(moved, execution_options=without_session)
    db.session.execute(delete(ReplacedScan).where(is_one), execution_options=without_session)
    rows = [{"id": each, "scan_id": scan_id} for each in scan_ids]
    db.session.execute(insert(ReplacedScan), rows)


class Order(StrEnum):
    """The sort orders of a user's scans."""

    NEWEST = "newest"
    RISK = "risk"
    UNCERTAINTY = "uncertainty"

    @property
    def columns(self) -> tuple[ColumnElement[Any] | InstrumentedAttribute[Any], ...]:
        """The columns to sort by, each with an index. By risk and by uncertainty, STAT scans come
        first.
        """
        newest = Scan.created_at.desc()
        if self is Order.RISK:
            return (Scan.stat.desc(), Scan.risk.desc(), newest, Scan.id)
        if self is Order.UNCERTAINTY:
            return (Scan.stat.desc(), Scan.margin, newest, Scan.id)
        return (newest, Scan.study_id, Scan.id)


# For worklists by risk and by uncertainty. Defined outside the class, because Alembic sees a
# different index on SQLite if an inherited column is given by name.
Index(
    "ix_scan_risk",
    Scan.user_id,
    Scan.stat.desc(),
    Scan.risk.desc(),
    Scan.created_at.desc(),
    Scan.id,
)
Index(
    "ix_scan_margin", Scan.user_id, Scan.stat.desc(), Scan.margin, Scan.created_at.desc(), Scan.id
)
# All columns that a worklist filters and sorts by, so that it reads the rows of one page only.
Index(
    "ix_scan_worklist",
    Scan.user_id,
    Scan.created_at.desc(),
    Scan.study_id,
    Scan.id,
    Scan.stat,
    Scan.status,
    Scan.verdict_state,
    Scan.risk,
    Scan.margin,
    Scan.slice_count,
    Scan.title,
)

IS_OPEN = Scan.finished_at.is_(None) & Scan.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
"""The condition for scans that are waiting or being analyzed; none of them has `finished_at`."""


def urgent_room(user_id: str) -> int:
    """Return how many more STAT scans a user may have in the queue (`MAX_STAT`).

    The user's row is locked, so the number is valid until the caller commits.
    """
    lock_person(user_id)
    count = select(func.count()).where(Scan.user_id == user_id, Scan.stat, IS_OPEN)
    urgent = db.session.scalar(count) or 0
    return int(max(0, current_app.config["MAX_STAT"] - urgent))


def set_stat(scan_id: str, user_id: str, stat: bool) -> bool:
    """Make a scan of that user STAT or routine. The caller commits.

    Returns:
        False if there is no such scan, it has this priority already, or too many of the user's STAT
        scans are waiting.
    """
    waits = select(Scan.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))).where(Scan.id == scan_id)
    if stat and db.session.scalar(waits) and not urgent_room(user_id):
        return False
    changed = (
        update(Scan)
        .where(Scan.id == scan_id, Scan.user_id == user_id, Scan.stat != stat)
        .values(stat=stat)
        .returning(Scan.id)
    )
    return db.session.scalar(changed, execution_options={"synchronize_session": False}) is not None


def priority_in_turn(scan_id: str) -> dict[str, Any]:
    """Return the columns to change in a scan that is queued again: it becomes routine if its owner
    already has too many STAT scans waiting.
    """
    scan = db.session.execute(
        select(Scan.user_id, Scan.stat, Scan.notes).where(Scan.id == scan_id)
    ).one_or_none()
    if scan is None or not scan.stat or urgent_room(scan.user_id):
        return {}
    return {"stat": False, "notes": [*(scan.notes or []), IN_ITS_TURN]}


def force(scan_id: str, user_id: str) -> bool:
    """Queue a user's scan that was rejected because it is not a head CT again, to be analyzed
    anyway. The caller commits and notifies a worker.

    Returns:
        False if the scan was not rejected for this reason, or its original is no longer stored.
    """
    refused = (
        (Scan.status == JobStatus.FAILED) & Scan.not_head_ct.is_not(None) & Scan.forced_at.is_(None)
    )
    may_be_read = (Scan.user_id == user_id) & Scan.original_removed_at.is_(None)
    return queue_again(
        Scan,
        Scan.id == scan_id,
        may_be_read,
        refused,
        forced_at=database_now(),
        **priority_in_turn(scan_id),
    )


def retry(scan_id: str) -> bool:
    """Queue a failed or cancelled scan again, like a new one. The caller commits and notifies a
    worker.

    Returns:
        False if it is neither failed nor cancelled, or its original is no longer stored.
    """
    return queue_again(
        Scan,
        Scan.id == scan_id,
        Scan.original_removed_at.is_(None),
        not_head_ct=None,
        **priority_in_turn(scan_id),
    )
