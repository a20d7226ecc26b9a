"""Rows that a worker claims: their status, their lease and the verdict they end in."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Enum, ForeignKey, Index, String, Text, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Mapped, declared_attr, mapped_column

from webapp.extensions import UtcDateTime, database_now, db, utc_now


def new_id() -> str:
    """Return an identifier that cannot be guessed: 32 hexadecimal digits."""
    return uuid.uuid4().hex


class JobStatus(StrEnum):
    """`queued → running → done | failed | cancelled`."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True where nothing more will happen by itself."""
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Leased:
    """The columns of a row that workers claim (`worker/leases.py`).

    `attempts` counts claims that ended in the worker's death. Of these only some speak against the
    row and are `counted_deaths`: `death_counts` says of the current claim whether its end would be
    one. `error` is a sentence that a user may read. `queued_at` is when it was last asked for, from
    which its waiting counts. No worker claims it before `retry_at`; `refused_since` is when the
    storage first refused what it needs.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    status: Mapped[JobStatus] = mapped_column(
        # Stored as its text in a plain column, so that a new status needs no migration.
        Enum(
            JobStatus,
            native_enum=False,
            length=16,
            values_callable=lambda statuses: [status.value for status in statuses],
        ),
        default=JobStatus.QUEUED,
    )
    attempts: Mapped[int] = mapped_column(default=0)
    counted_deaths: Mapped[int] = mapped_column(default=0)
    death_counts: Mapped[bool] = mapped_column(default=False)
    lease_owner: Mapped[str | None] = mapped_column(String(100))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    progress: Mapped[float] = mapped_column(default=0.0)
    stage: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    queued_at: Mapped[datetime] = mapped_column(
        UtcDateTime,
        default=utc_now,
        # Neither database adds a column that must be set without one.
        server_default=text("'1970-01-01 00:00:00.000000'"),
    )
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    retry_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    refused_since: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return the column of the person whose rows take turns with those of others; None where
        rows are claimed by age alone.
        """
        return None

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the column of `Attempt` that names such a row; None where nobody asks what it went
        through.
        """
        return None

    @classmethod
    def urgency(cls) -> tuple[InstrumentedAttribute[bool], ...]:
        """Return the column, if there is one, that is true of rows which are claimed before all
        others.
        """
        return ()

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index, ...]:
        return (Index(None, "status", "queued_at"),)  # type: ignore[arg-type]


class Attempt(db.Model):
    """How a scan or a run ended before it was asked for again, or lost its worker; its last attempt
    is the row itself.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[str | None] = mapped_column(
        ForeignKey("scan.id", ondelete="CASCADE"), index=True
    )
    run_id: Mapped[str | None] = mapped_column(
        ForeignKey("training_run.id", ondelete="CASCADE"), index=True
    )
    # Empty where no worker had it.
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    outcome: Mapped[str] = mapped_column(Text)  # A sentence for its owner.


def cancel(table: type[Leased], *which: ColumnElement[bool]) -> bool:
    """End the row of `table` that `which` names as cancelled; False where it has ended already. The
    caller commits.

    A worker that has it loses its lease, so whatever it computes is written nowhere, and it notices
    at its next write.
    """
    ended = {
        "status": JobStatus.CANCELLED,
        "finished_at": database_now(),
        "stage": None,
        "lease_owner": None,
        "lease_expires_at": None,
    }
    open_rows = update(table).where(*which, table.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)))
    return (
        db.session.scalar(
            open_rows.values(**ended).returning(table.id),
            execution_options={"synchronize_session": False},
        )
        is not None
    )


UNANSWERED = (JobStatus.FAILED, JobStatus.CANCELLED)


def queue_again(
    table: type[Leased],
    *which: ColumnElement[bool],
    ended_as: Collection[JobStatus] = UNANSWERED,
    **columns: Any,
) -> bool:
    """Queue the row of `table` that `which` names and that has ended so, and set `columns`; False
    where there is none.

    How one failed or was cancelled joins its history (`Attempt`); deaths count anew, since whoever
    asks may have removed their cause. The row is locked first, so that two clicks are one. The
    caller commits and nudges.
    """
    ended = (*which, table.status.in_(ended_as))
    before = db.session.execute(
        select(table.id, table.status, table.error, table.started_at, table.finished_at)
        .where(*ended)
        .with_for_update()
    ).one_or_none()
    if before is None:
        return False
    fresh = {
        "status": JobStatus.QUEUED,
        "progress": 0.0,
        "error": None,
        "started_at": None,
        "finished_at": None,
        "counted_deaths": 0,
        "retry_at": None,
        "refused_since": None,
    }
    fresh["queued_at"] = database_now()
    again = update(table).where(table.id == before.id).values(**fresh, **columns)
    db.session.execute(again, execution_options={"synchronize_session": False})
    if before.status in UNANSWERED and (column := table.in_attempt()) is not None:
        outcome = before.error or ("Canceled" if before.status == JobStatus.CANCELLED else "Failed")
        times = {"started_at": before.started_at, "ended_at": before.finished_at or utc_now()}
        db.session.add(Attempt(**{column: before.id}, outcome=outcome, **times))
    return True
