"""Rows that a worker claims: their status, their lease and how they end."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Enum, ForeignKey, Index, String, Text, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Mapped, declared_attr, mapped_column
from sqlalchemy.schema import SchemaItem

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
        """Whether the job has ended: only a person can start it again."""
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


def queue_index(name: str, *before: Any) -> Index:
    """Return the index of a queue in the order in which workers claim from it, taking turns between
    users, without finished rows; `before` are columns between the user and the time.
    """
    queued = text("status = 'queued'")
    columns = "user_id", *before, "queued_at", "id"
    return Index(name, *columns, postgresql_where=queued, sqlite_where=queued)


class Leased:
    """The columns of a row that workers claim (`worker/leases.py`).

    Attributes:
        attempts: how many claims ended because the worker died.
        counted_deaths: how many of these may have been caused by the row.
        death_counts: whether the death of the current worker would be one of them.
        lease_owner, lease_expires_at: the worker that holds the row, and until when.
        progress, stage: the progress of a running job, 0..1, and its current step, for its page.
        error: why the job failed, as a sentence for the user.
        queued_at: when the job was last requested; its waiting time starts here.
        retry_at: no worker claims the row before this time.
        refused_since: when the storage first refused a file that the job needs.
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
        # Neither database can add a NOT NULL column without a default.
        server_default=text("'1970-01-01 00:00:00.000000'"),
    )
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    retry_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    refused_since: Mapped[datetime | None] = mapped_column(UtcDateTime)

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return the column with the user, if the rows of different users take turns; None if rows
        are claimed by age alone.
        """
        return None

    @classmethod
    def in_attempt(cls) -> str | None:
        """Return the name of the column of `Attempt` that refers to such a row; None if its history
        is not stored.
        """
        return None

    @classmethod
    def urgency(cls) -> tuple[InstrumentedAttribute[bool], ...]:
        """Return the column, if there is one, that is true for rows to be claimed first."""
        return ()

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[SchemaItem, ...]:
        return (Index(None, "status", "queued_at"),)  # type: ignore[arg-type]


class Attempt(db.Model):
    """An earlier attempt at a scan or a run, which ended before it was retried or when its worker
    died; the latest attempt is the row itself.
    """

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[str | None] = mapped_column(
        ForeignKey("scan.id", ondelete="CASCADE"), index=True
    )
    run_id: Mapped[str | None] = mapped_column(
        ForeignKey("training_run.id", ondelete="CASCADE"), index=True
    )
    # Empty if no worker had claimed it.
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime] = mapped_column(UtcDateTime)
    outcome: Mapped[str] = mapped_column(Text)  # A sentence for its owner.


def cancel(table: type[Leased], *which: ColumnElement[bool]) -> bool:
    """Cancel the jobs in the rows of `table` that match `which`, often one. The caller commits.

    A worker that is running one loses its lease, so it cannot write any result, and stops at its
    next attempt to write.

    Returns:
        False if no such job is queued or running.
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


Row = TypeVar("Row", bound=Leased)


def failed_or_retrying(table: type[Row], most: int) -> list[Row]:
    """Return the newest jobs that failed permanently, or at least once and wait for another try."""
    rows = [
        row
        for status in (JobStatus.QUEUED, JobStatus.FAILED)
        for row in db.session.scalars(
            select(table)
            .where(table.status == status, table.error.is_not(None))
            .order_by(table.queued_at.desc())
            .limit(most)
        )
    ]
    return sorted(rows, key=lambda row: row.queued_at, reverse=True)[:most]


UNANSWERED = (JobStatus.FAILED, JobStatus.CANCELLED)


def queue_again(
    table: type[Leased],
    *which: ColumnElement[bool],
    ended_as: Collection[JobStatus] = UNANSWERED,
    **columns: Any,
) -> bool:
    """Queue the job in the row of `table` that matches `which` and has ended in this way again, and
    set `columns`. The caller commits and notifies a worker.

    A failed or cancelled job's outcome is added to its history (`Attempt`). Deaths of workers are
    counted from 0 again, because their cause may be gone. The row is locked first, so that a double
    click queues it once.

    Returns:
        False if there is no such job, or it has not ended in this way.
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
