"""Replays: a prediction is computed again from the stored original, to check that it is
bit-identical; and what must be known about a prediction for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, false, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, joinedload, mapped_column, relationship

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.accounts import User
from webapp.models.learning import ModelVersion
from webapp.models.leased import JobStatus, Leased, cancel, new_id, queue_again
from webapp.models.predictions import EarlierAnswer, Environment, Prediction
from webapp.models.scans import Scan

MOST_SAMPLED = 1000
ENDED = (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class ReplaySample(db.Model):
    """Predictions drawn at random by an administrator, to be replayed together."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    requested_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    requested_by: Mapped[User | None] = relationship()


class Replay(Leased, db.Model):
    """A prediction for a scan, the current one or an earlier one, that is computed again with the
    version that made it; a job of the predict workers with a lower priority than all that somebody
    waits for.

    Attributes:
        urgent: somebody requested this one, so it is processed before those of samples.
        is_same: whether it is bit-identical; None until it was computed.
        result: what `worker.replay` found.
    """

    scan_id: Mapped[str] = mapped_column(ForeignKey("scan.id", ondelete="CASCADE"), index=True)
    prediction_id: Mapped[str | None] = mapped_column(
        ForeignKey("prediction.id", ondelete="CASCADE"), index=True
    )
    earlier_id: Mapped[int | None] = mapped_column(
        ForeignKey("earlier_answer.id", ondelete="CASCADE"), index=True
    )
    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"))
    sample_id: Mapped[str | None] = mapped_column(
        ForeignKey("replay_sample.id", ondelete="CASCADE"), index=True
    )
    urgent: Mapped[bool] = mapped_column(default=False, server_default=false())
    is_same: Mapped[bool | None]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    scan: Mapped[Scan] = relationship()
    prediction: Mapped[Prediction | None] = relationship()
    earlier: Mapped[EarlierAnswer | None] = relationship()
    version: Mapped[ModelVersion] = relationship()

    __table_args__ = (Index(None, "status", "queued_at"),)

    @classmethod
    def urgency(cls) -> tuple[InstrumentedAttribute[bool], ...]:
        """Return the column that is true for replays that somebody requested."""
        return (cls.urgent,)  # type: ignore[return-value]


def environment_id(content: Mapping[str, Any]) -> str:
    """Return the id under which an environment is stored, storing it if necessary; the caller
    commits.
    """
    text = json.dumps(content, sort_keys=True)
    id = hashlib.sha256(text.encode()).hexdigest()[:32]
    if db.session.get(Environment, id) is None:
        try:
            with db.session.begin_nested():
                db.session.add(Environment(id=id, content=dict(content)))
        except IntegrityError:
            pass  # Another worker of the same kind has just stored it.
    return id


def request_replay(scan: Scan, answer: Prediction | EarlierAnswer) -> bool:
    """Queue a prediction of a scan to be computed again; return False if its original is no longer
    stored, a new analysis is in progress, or this one is already being computed again. The caller
    commits and notifies a worker.
    """
    # Locked, so that a double click counts once.
    stored = select(Scan.id).where(Scan.id == scan.id, Scan.original_removed_at.is_(None))
    if db.session.scalar(stored.with_for_update()) is None:
        return False
    table = type(answer)
    if db.session.scalar(select(table.id).where(table.id == answer.id)) is None:
        return False  # The scan was analyzed again since the caller read it.
    which = (
        {"prediction_id": answer.id}
        if isinstance(answer, Prediction)
        else {"earlier_id": answer.id}
    )
    same = select(Replay.id).filter_by(**which).where(Replay.sample_id.is_(None)).limit(1)
    known = db.session.scalar(same)
    if known is not None:
        return queue_again(Replay, Replay.id == known, ended_as=ENDED, is_same=None, result=None)
    db.session.add(
        Replay(scan_id=scan.id, version_id=answer.model_version_id, urgent=True, **which)
    )
    return True


def sample_answers(count: int, by_id: str | None) -> tuple[ReplaySample, int]:
    """Queue up to `count` current predictions, drawn at random from those whose original is stored;
    return the sample and their number. The caller commits and notifies a worker.
    """
    replayable = (
        select(Prediction.id, Prediction.scan_id, Prediction.model_version_id)
        .join(Prediction.scan)
        .where(Scan.original_removed_at.is_(None))
        .order_by(Prediction.id)
        # Rows deleted or replaced at this moment are skipped, so that they do not cause an error at
        # the end.
        .with_for_update(read=True, key_share=True, skip_locked=True)
    )
    # Ids are random, so the ids that follow a random one are a random sample, without sorting.
    start = new_id()
    drawn = list(db.session.execute(replayable.where(Prediction.id >= start).limit(count)))
    if missing := count - len(drawn):
        drawn += db.session.execute(replayable.where(Prediction.id < start).limit(missing))
    sample = ReplaySample(id=new_id(), requested_by_id=by_id)
    db.session.add(sample)
    db.session.flush()
    db.session.add_all(
        Replay(
            scan_id=row.scan_id,
            prediction_id=row.id,
            version_id=row.model_version_id,
            sample_id=sample.id,
        )
        for row in drawn
    )
    return sample, len(drawn)


def cancel_sample(sample_id: str) -> None:
    """Cancel the unfinished replays of a sample; the caller commits."""
    cancel(Replay, Replay.sample_id == sample_id)


def replays_of(scan: Scan) -> dict[str | int, Replay]:
    """Return the newest replay of each prediction of a scan, by the prediction's id."""
    named = (ModelVersion.architecture, ModelVersion.card_id, ModelVersion.number)
    rows = db.session.scalars(
        select(Replay)
        .where(Replay.scan_id == scan.id)
        .options(joinedload(Replay.version).load_only(*named))
        .order_by(Replay.queued_at, Replay.id)
    )
    return {answer_id: row for row in rows if (answer_id := row.prediction_id or row.earlier_id)}
