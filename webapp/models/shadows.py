"""Shadows: a candidate analyzes live scans in parallel with the live version, and only
administrators see its predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, joinedload, mapped_column, relationship

from ml.verdict import State, state_of
from webapp.extensions import UtcDateTime, database_now, db, utc_now
from webapp.models.accounts import User
from webapp.models.learning import ModelVersion
from webapp.models.leased import JobStatus, Leased, cancel, new_id
from webapp.models.opinions import unique_where
from webapp.models.promotions import Promotion, live_version, newest_promotion
from webapp.models.scans import Scan

log = logging.getLogger(__name__)

MOST_WAITING = 500
"""Maximum number of scans waiting for one shadow; those analyzed meanwhile are skipped and
counted.
"""
MOST_FAILURES = 5
"""A shadow ends once this many scans in a row have failed."""
OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)
WENT_LIVE = "This version went live."
LIVE_CHANGED = "Another version went live, so the comparison ended."
PAST_IS_ANSWERED = "It has analyzed all scans from that period."


class ShadowRefused(ValueError):
    """A shadow cannot be started; the message is a sentence for the administrator."""


class Shadow(db.Model):
    """A candidate (`version`) that analyzes what the live version (`against`) has analyzed since
    `started_at`, until `ended_at`; at most one for each kind of input is running.

    Attributes:
        reads: "slice" or "series".
        promotion_id: for a shadow that analyzes only what was analyzed while this promotion was in
            force: then `version` is what would have stayed live without it
            (`webapp.admin.promotion_effects`). Promotions are never deleted.
        ended_because: a sentence.
        skipped: live scans that it did not analyze, because too many were waiting or the file was
            gone.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"), index=True)
    against_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    reads: Mapped[str] = mapped_column(String(16))
    promotion_id: Mapped[int | None]
    started_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_because: Mapped[str | None] = mapped_column(Text)
    skipped: Mapped[int] = mapped_column(default=0)
    version: Mapped[ModelVersion] = relationship(foreign_keys=[version_id])
    against: Mapped[ModelVersion] = relationship(foreign_keys=[against_id])
    started_by: Mapped[User | None] = relationship()

    __table_args__ = (unique_where("ended_at IS NULL", "uq_shadow_open", "reads"),)


class ShadowAnswer(Leased, db.Model):
    """A live scan that a candidate is to analyze, and its prediction; a job of the predict workers
    with the lowest priority. It is deleted with the scan.

    Attributes:
        live_probability, live_threshold, live_state: the live version's prediction.
        probability, threshold, state: the candidate's prediction; None until it is computed.
        seconds: the processor time of all threads of a predict worker, so that other work on the
            machine does not count; without decoding, which is done by another process.
    """

    shadow_id: Mapped[str] = mapped_column(ForeignKey("shadow.id", ondelete="CASCADE"))
    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), index=True)
    live_probability: Mapped[float]
    live_threshold: Mapped[float]
    live_state: Mapped[State] = mapped_column(String(16))
    probability: Mapped[float | None]
    threshold: Mapped[float | None]
    state: Mapped[State | None] = mapped_column(String(16))
    seconds: Mapped[float | None]
    shadow: Mapped[Shadow] = relationship()
    scan: Mapped[Scan] = relationship()

    __table_args__ = (
        Index(None, "status", "queued_at"),
        Index("ix_shadow_answer_finished", "shadow_id", "finished_at"),
        Index("uq_shadow_answer_scan", "shadow_id", "scan_id", unique=True),
    )


def start_shadow(version: ModelVersion, by_id: str | None) -> Shadow:
    """Have a version analyze live scans in the shadow of the live version; the caller commits.

    Raises:
        ShadowRefused: it is blocked or live, no version is live, or another one is in shadow.
    """
    live = live_version(version.reads)
    if version.blocked_because:
        raise ShadowRefused(version.blocked_because)
    if live is None:
        raise ShadowRefused(
            f"No {version.reads} version is live, so there is nothing to compare with."
        )
    if live.id == version.id:
        raise ShadowRefused("This version is live. Shadow mode compares another version with it.")
    return _begun(version, live, by_id)


def start_past_shadow(
    version: ModelVersion,
    promotion: Promotion,
    answers: Sequence[Mapping[str, Any]],
    by_id: str | None,
) -> Shadow:
    """Have a version analyze scans that another one analyzed while `promotion` was in force; the
    caller commits.

    Args:
        answers: columns of those predictions, at most `MOST_WAITING`.

    Raises:
        ShadowRefused: it is blocked, there are no such scans, or another one is in shadow.
    """
    if version.blocked_because:
        raise ShadowRefused(version.blocked_because)
    if not answers:
        raise ShadowRefused(
            "No scans from that period are left to analyze because their files were deleted."
        )
    shadow = _begun(version, promotion.version, by_id, promotion.id)
    _queue_for(shadow.id, {answer["scan_id"]: answer for answer in answers})
    return shadow


def _begun(
    version: ModelVersion,
    against: ModelVersion,
    by_id: str | None,
    promotion_id: int | None = None,
) -> Shadow:
    shadow = Shadow(
        id=new_id(),
        version_id=version.id,
        against_id=against.id,
        reads=version.reads,
        promotion_id=promotion_id,
        started_by_id=by_id,
    )
    try:
        with db.session.begin_nested():
            db.session.add(shadow)
    except IntegrityError as err:
        raise ShadowRefused(
            f"Another {version.reads} version is already in shadow mode. Stop it first."
        ) from err
    return shadow


def end_shadow(shadow_id: str, because: str) -> bool:
    """End a shadow for this reason, a sentence, and cancel its unfinished scans; return False if it
    has already ended. The caller commits.
    """
    ended = db.session.scalar(
        update(Shadow)
        .where(Shadow.id == shadow_id, Shadow.ended_at.is_(None))
        .values(ended_at=database_now(), ended_because=because)
        .returning(Shadow.id),
        execution_options={"synchronize_session": False},
    )
    if ended is None:
        return False
    cancel(ShadowAnswer, ShadowAnswer.shadow_id == shadow_id)
    return True


def end_shadows() -> None:
    """End the shadows that have nothing left to compare with or that fail on every scan; the caller
    commits.
    """
    open_ones = (
        select(Shadow)
        .where(Shadow.ended_at.is_(None))
        .options(joinedload(Shadow.version).load_only(ModelVersion.blocked_because))
        .execution_options(populate_existing=True)
    )
    for shadow in db.session.scalars(open_ones).all():
        because = _reason_to_end(shadow)
        if because is not None:
            end_shadow(shadow.id, because)


def _reason_to_end(shadow: Shadow) -> str | None:
    if shadow.promotion_id is None and (because := _changed_live(shadow)):
        return because
    if shadow.version.blocked_because:
        return shadow.version.blocked_because
    last = db.session.execute(
        select(ShadowAnswer.status, ShadowAnswer.error)
        .where(
            ShadowAnswer.shadow_id == shadow.id,
            ShadowAnswer.finished_at.is_not(None),
            ShadowAnswer.status.in_((JobStatus.DONE, JobStatus.FAILED)),
        )
        .order_by(ShadowAnswer.finished_at.desc(), ShadowAnswer.id)
        .limit(MOST_FAILURES)
    ).all()
    if len(last) == MOST_FAILURES and all(row.status == JobStatus.FAILED for row in last):
        return f"It failed on {MOST_FAILURES} scans in a row. The last error was: {last[0].error}"
    left = select(ShadowAnswer.id).where(
        ShadowAnswer.shadow_id == shadow.id, ShadowAnswer.status.in_(OPEN)
    )
    if shadow.promotion_id is not None and db.session.scalar(left.limit(1)) is None:
        return PAST_IS_ANSWERED
    return None


def _changed_live(shadow: Shadow) -> str | None:
    newest = newest_promotion(shadow.reads)
    if newest is not None and newest.version_id == shadow.against_id:
        return None
    is_promoted = newest is not None and newest.version_id == shadow.version_id
    return WENT_LIVE if is_promoted else LIVE_CHANGED


def queue_for_shadows(answers: Sequence[Mapping[str, Any]]) -> int:
    """Queue the scans of these live predictions, given as columns of rows that were just written,
    for the shadows of the versions that made them; return how many. The caller commits.

    Scans beyond `MOST_WAITING` are skipped and counted. A scan that is analyzed again gets no
    second prediction.
    """
    versions = {answer["model_version_id"] for answer in answers}
    open_ones = select(Shadow.id, Shadow.against_id).where(
        Shadow.ended_at.is_(None), Shadow.promotion_id.is_(None), Shadow.against_id.in_(versions)
    )
    queued = 0
    for shadow in db.session.execute(open_ones).all():
        of_live = [answer for answer in answers if answer["model_version_id"] == shadow.against_id]
        try:
            with db.session.begin_nested():
                queued += _queue_for(shadow.id, {answer["scan_id"]: answer for answer in of_live})
        except SQLAlchemyError as err:  # A shadow must never cost a live result.
            log.error("shadow=%s misses scans: %s", shadow.id, type(err).__name__)
    return queued


def _queue_for(shadow_id: str, answers: Mapping[str, Mapping[str, Any]]) -> int:
    mine = ShadowAnswer.shadow_id == shadow_id
    known = set(
        db.session.scalars(
            select(ShadowAnswer.scan_id).where(mine, ShadowAnswer.scan_id.in_(answers))
        )
    )
    some = select(ShadowAnswer.id).where(ShadowAnswer.status == JobStatus.QUEUED, mine)
    waiting = db.session.scalar(
        select(func.count()).select_from(some.limit(MOST_WAITING).subquery())
    )
    new = [answer for scan_id, answer in answers.items() if scan_id not in known]
    queued = new[: max(0, MOST_WAITING - (waiting or 0))]
    if queued:
        db.session.execute(
            insert(ShadowAnswer).values([_row(shadow_id, answer) for answer in queued])
        )
    if skipped := len(new) - len(queued):
        skip(shadow_id, skipped)
    return len(queued)


def skip(shadow_id: str, scans: int) -> None:
    """Count live scans that a shadow does not analyze; the caller commits."""
    db.session.execute(
        update(Shadow).where(Shadow.id == shadow_id).values(skipped=Shadow.skipped + scans),
        execution_options={"synchronize_session": False},
    )


def _row(shadow_id: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": new_id(),
        "shadow_id": shadow_id,
        "scan_id": answer["scan_id"],
        "live_probability": answer["probability"],
        "live_threshold": answer["threshold"],
        "live_state": state_of(positive=answer["positive"], uncertain=answer["uncertain"]),
        "queued_at": database_now(),
    }
