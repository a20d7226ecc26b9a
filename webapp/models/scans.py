"""What a person submits and what the service answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

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
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from ml.verdict import State, state_of
from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models.accounts import User, lock_person
from webapp.models.learning import ModelVersion
from webapp.models.leased import Attempt, JobStatus, Leased, new_id, queue_again

_QUEUED = text("status = 'queued'")
IN_ITS_TURN = (
    "You already have too many STAT scans waiting; this one was queued with normal priority."
)
ORIGINAL_REMOVED = "The original file is no longer stored, so the scan cannot be analyzed again."


class Scan(Leased, db.Model):
    """What a person submitted, one slice or a series of them; the queue of the predict workers.

    Its original is one stored file: the slice, a multi-frame file, or the files of a series in an
    uncompressed ZIP.
    """

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(80), default="")
    kind: Mapped[str] = mapped_column(String(16))  # What its bytes are: png, jpeg, dicom or nifti.
    # As its headers say; fewer may be readable.
    slice_count: Mapped[int] = mapped_column(default=1, server_default="1")
    # Bytes of its original.
    size: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # Read before all others.
    stat: Mapped[bool] = mapped_column(default=False, server_default=false())
    # What was found while it was taken in; sentences for its owner.
    notes: Mapped[list[str] | None] = mapped_column(JSON)
    original_key: Mapped[str] = mapped_column(String(200))
    # When it was too old to be kept (KEEP_ORIGINALS_DAYS).
    original_removed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # The slice as the page shows it; the worker makes it.
    image_key: Mapped[str | None] = mapped_column(String(200))
    thumbnail_key: Mapped[str | None] = mapped_column(String(200))
    # All slices of a series for the viewer (`ml.scans.volume`).
    volume_key: Mapped[str | None] = mapped_column(String(200))
    # What its model outlines, in the same frame; None where nothing is outlined.
    outline_key: Mapped[str | None] = mapped_column(String(200))
    # 0 to 1; set where it failed because it does not look like a head CT.
    not_head_ct: Mapped[float | None]
    # When its owner said to score it anyway.
    forced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # What its prediction says, once more here for the orders of the worklist; as long as it has
    # none, it comes last in each.
    risk: Mapped[float] = mapped_column(default=0.0, server_default="0")  # The probability.
    # How far that lies from the threshold.
    margin: Mapped[float] = mapped_column(default=1.0, server_default="1")
    verdict_state: Mapped[State | None] = mapped_column(String(16))
    # When its owner last opened its page, by the database's clock.
    opened_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    user: Mapped[User] = relationship()
    prediction: Mapped[Prediction | None] = relationship(back_populates="scan")
    history: Mapped[list[Attempt]] = relationship(order_by=Attempt.id, passive_deletes=True)
    earlier_answers: Mapped[list[EarlierAnswer]] = relationship(
        order_by=lambda: EarlierAnswer.id.desc(), passive_deletes=True
    )

    __table_args__ = (
        Index(None, "status", "queued_at"),
        # What came since a worklist was opened.
        Index("ix_scan_finished", "user_id", "finished_at"),
        # The queue as claims go through it, from person to person. Scans that have ended are not in
        # it.
        Index(
            "ix_scan_queue",
            "user_id",
            stat.desc(),
            "queued_at",
            "id",
            postgresql_where=_QUEUED,
            sqlite_where=_QUEUED,
        ),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return whose scan it is."""
        return cls.user_id  # type: ignore[return-value]

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the column that names a scan."""
        return "scan_id"

    @classmethod
    def urgency(cls) -> tuple[InstrumentedAttribute[bool], ...]:
        """Return whether its submitter called it urgent."""
        return (cls.stat,)  # type: ignore[return-value]

    @property
    def turnaround_s(self) -> float | None:
        """Seconds from submission to the end; None while it has not ended."""
        if self.finished_at is None:
            return None
        return (self.finished_at - self.created_at).total_seconds()

    @property
    def is_unread(self) -> bool:
        """True where its owner has not opened its page since it was answered or failed."""
        return (
            self.status in (JobStatus.DONE, JobStatus.FAILED)
            and self.finished_at is not None
            and (self.opened_at is None or self.opened_at < self.finished_at)
        )

    @property
    def may_have_heat_maps(self) -> bool:
        """True where it was answered without heat maps, which can still be drawn."""
        return (
            self.prediction is not None
            and self.prediction.heatmap is None
            and self.original_removed_at is None
        )

    @property
    def may_be_scored_again(self) -> bool:
        """True where it was answered, and what was submitted is still stored."""
        return self.status == JobStatus.DONE and self.original_removed_at is None

    @property
    def may_be_forced(self) -> bool:
        """True where it failed only because it does not look like a head CT, which its owner may
        know better.
        """
        return (
            self.status == JobStatus.FAILED
            and self.not_head_ct is not None
            and self.forced_at is None
            and self.original_removed_at is None
        )


class Order(StrEnum):
    """An order in which a person looks at their scans."""

    NEWEST = "newest"
    RISK = "risk"
    UNCERTAINTY = "uncertainty"

    @property
    def columns(self) -> tuple[ColumnElement[Any] | InstrumentedAttribute[Any], ...]:
        """What scans are ordered by; urgent ones come first in the orders of those who have to
        choose. Each is an index of one's scans.
        """
        newest = (Scan.created_at.desc(), Scan.id)
        if self is Order.RISK:
            return (Scan.stat.desc(), Scan.risk.desc(), *newest)
        if self is Order.UNCERTAINTY:
            return (Scan.stat.desc(), Scan.margin, *newest)
        return newest


# For worklists by risk and by uncertainty. Here, because a text in place of the inherited column is
# another index to Alembic on SQLite.
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
# All that a worklist filters and sorts by, so that it reads the rows of one page only.
Index(
    "ix_scan_worklist",
    Scan.user_id,
    Scan.created_at.desc(),
    Scan.id,
    Scan.stat,
    Scan.status,
    Scan.verdict_state,
    Scan.risk,
    Scan.slice_count,
    Scan.title,
)


def urgent_room(user_id: str) -> int:
    """Return how many more urgent scans that person may have waiting: as many until the caller
    commits, for their row is locked.
    """
    lock_person(user_id)
    waits = Scan.stat & Scan.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    urgent = (
        db.session.scalar(
            select(func.count()).select_from(Scan).where(Scan.user_id == user_id, waits)
        )
        or 0
    )
    return int(max(0, current_app.config["MAX_STAT"] - urgent))


def set_stat(scan_id: str, user_id: str, stat: bool) -> bool:
    """Make a scan of that user STAT or routine; False where it is not there, is so already, or too
    many STAT scans wait.

    The caller commits.
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


def _in_turn(scan_id: str) -> dict[str, Any]:
    """Return the columns of a scan that is asked for again: it is urgent no more if its owner has
    too many such by now.
    """
    scan = db.session.execute(
        select(Scan.user_id, Scan.stat, Scan.notes).where(Scan.id == scan_id)
    ).one_or_none()
    if scan is None or not scan.stat or urgent_room(scan.user_id):
        return {}
    return {"stat": False, "notes": [*(scan.notes or []), IN_ITS_TURN]}


def force(scan_id: str, user_id: str) -> bool:
    """Queue a refused scan of that user again, to be scored whatever it looks like; False where
    there is nothing to overrule.

    The caller commits and nudges.
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
        **_in_turn(scan_id),
    )


def retry(scan_id: str) -> bool:
    """Queue a failed or cancelled scan again, as if nobody had looked at it; False where it is
    neither, or its original is not kept.

    The caller commits and nudges.
    """
    return queue_again(
        Scan,
        Scan.id == scan_id,
        Scan.original_removed_at.is_(None),
        not_head_ct=None,
        **_in_turn(scan_id),
    )


def score_again(scan_id: str) -> bool:
    """Queue an answered scan for the version that is live now and keep its answer among the earlier
    ones; False where it was not answered, or its original is not kept.

    The caller commits and nudges. The heat maps of the earlier answer become orphans.
    """
    queued = queue_again(
        Scan,
        Scan.id == scan_id,
        Scan.original_removed_at.is_(None),
        ended_as=(JobStatus.DONE,),
        risk=0.0,
        margin=1.0,
        verdict_state=None,
        **_in_turn(scan_id),
    )
    if queued:
        answer = (
            Prediction.scan_id,
            Prediction.model_version_id,
            Prediction.probability,
            Prediction.threshold,
            Prediction.positive,
            Prediction.uncertain,
            Prediction.created_at.label("answered_at"),
        )
        kept = select(*answer).where(Prediction.scan_id == scan_id)
        names = [column.name for column in kept.selected_columns]
        db.session.execute(insert(EarlierAnswer).from_select(names, kept))
        db.session.execute(
            delete(Prediction).where(Prediction.scan_id == scan_id),
            execution_options={"synchronize_session": False},
        )
    return queued


class Answer:
    """What an answer says, which pages, exports and the API read from here alone."""

    probability: Mapped[float]
    threshold: Mapped[float]
    positive: Mapped[bool]
    uncertain: Mapped[bool]

    @property
    def verdict(self) -> str:
        """The sentence that a person reads first."""
        return "Brain Hemorrhage Detected." if self.positive else "No Brain Hemorrhage Detected."

    @property
    def state(self) -> State:
        """Whether a hemorrhage is suspected, not found, or the verdict is inconclusive."""
        return state_of(positive=self.positive, uncertain=self.uncertain)


class Prediction(Answer, db.Model):
    """The verdict on a scan: exactly one where the scan is done."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), unique=True)
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    warnings: Mapped[list[str]] = mapped_column(JSON)
    # Those of them that cast doubt on the answer; None in predictions from before they were told
    # apart.
    doubts: Mapped[list[str] | None] = mapped_column(JSON)
    # A probability for each slice, in anatomical order.
    slices: Mapped[list[float]] = mapped_column(JSON)
    # Which of a series' slices to look at first; counted from 0.
    first_slices: Mapped[list[int] | None] = mapped_column(JSON)
    # The types of bleeding that its model tells: name -> {"probability": of the scan, "slices": one
    # for each slice}; none in what has none.
    types: Mapped[dict[str, dict[str, Any]] | None] = mapped_column(JSON)
    # Which slices have an outline in `Scan.outline_key`; None where the model gives none, or found
    # no hemorrhage.
    outlined_slices: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    # The outlined area of each slice; None as above, or where the size of a pixel is unknown.
    areas_mm2: Mapped[list[float] | None] = mapped_column(JSON(none_as_null=True))
    volume_ml: Mapped[float | None]
    # Why there is none, a sentence.
    no_volume_because: Mapped[str | None] = mapped_column(String(120))
    seconds: Mapped[float]  # This scan's share of its batch's time in the model.
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    scan: Mapped[Scan] = relationship(back_populates="prediction")
    model_version: Mapped[ModelVersion] = relationship()
    heatmap: Mapped[Heatmap | None] = relationship(back_populates="prediction")

    @property
    def doubts_of_answer(self) -> list[str]:
        """The warnings that cast doubt on the answer."""
        return self.warnings if self.doubts is None else self.doubts

    @property
    def notes_on_images(self) -> list[str]:
        """The other warnings: what was found or assumed when the images were read."""
        return [each for each in self.warnings if each not in self.doubts_of_answer]


class EarlierAnswer(Answer, db.Model):
    """An answer that was followed by another one, of the same or another model version."""

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), index=True)
    model_version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    answered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    model_version: Mapped[ModelVersion] = relationship()


class Heatmap(Leased, db.Model):
    """The picture of where the model looked, drawn after the verdict is told; it is claimed like
    any job.
    """

    prediction_id: Mapped[str] = mapped_column(
        ForeignKey("prediction.id", ondelete="CASCADE"), unique=True
    )
    # Whose scan it is, once more for the index of the queue.
    user_id: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    # Of the slice that `Scan.image_key` shows.
    image_key: Mapped[str | None] = mapped_column(String(200))
    # Which of a series' slices are drawn, each as `heatmaps/<id>.<index>.png`.
    slices: Mapped[list[int] | None] = mapped_column(JSON)
    prediction: Mapped[Prediction] = relationship(back_populates="heatmap")

    __table_args__ = (
        Index(None, "status", "queued_at"),
        Index(
            "ix_heatmap_queue",
            "user_id",
            "queued_at",
            "id",
            postgresql_where=_QUEUED,
            sqlite_where=_QUEUED,
        ),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return whose scan it is of."""
        return cls.user_id  # type: ignore[return-value]


def draw_heatmap(scan_id: str, user_id: str) -> bool:
    """Queue the heat maps of an answered scan of that user; False where it has some, or its
    original is not kept. The caller commits and nudges.

    Models that outline the hemorrhage get them only when somebody asks.
    """
    prediction_id = db.session.scalar(
        select(Prediction.id)
        .join(Prediction.scan)
        .outerjoin(Prediction.heatmap)
        .where(
            Scan.id == scan_id,
            Scan.user_id == user_id,
            Scan.original_removed_at.is_(None),
            Heatmap.id.is_(None),
        )
    )
    if prediction_id is None:
        return False
    try:
        with db.session.begin_nested():
            db.session.add(Heatmap(prediction_id=prediction_id, user_id=user_id))
    except IntegrityError:
        return False  # Two clicks are one.
    return True


def result_of(scan: Scan) -> dict[str, Any] | None:
    """Return what the API tells of a verdict, or None where there is none yet (its URL fields are
    the caller's).
    """
    prediction = scan.prediction
    if prediction is None:
        return None
    types = prediction.types or {}
    unknown = [None] * len(prediction.slices)
    areas: Sequence[float | None] = prediction.areas_mm2 or unknown
    return {
        "verdict": prediction.verdict,
        "positive": prediction.positive,
        "uncertain": prediction.uncertain,
        "state": prediction.state,
        "probability": prediction.probability,
        "threshold": prediction.threshold,
        "warnings": prediction.warnings,
        "model_version": {
            "id": prediction.model_version_id,
            "architecture": prediction.model_version.architecture,
        },
        "types": {name: told["probability"] for name, told in types.items()},
        "slices": [
            {
                "index": index,
                "probability": value,
                "types": {name: told["slices"][index] for name, told in types.items()},
                "area_mm2": areas[index],
            }
            for index, value in enumerate(prediction.slices)
        ],
        "first_slices": prediction.first_slices or [],
        "heatmap_slices": (prediction.heatmap and prediction.heatmap.slices) or [],
        "volume_ml": prediction.volume_ml,
        "no_volume_because": prediction.no_volume_because,
    }
