"""The page of operations: live models, stuck and running jobs, queues and workers."""

from __future__ import annotations

from datetime import datetime

from flask import Response, current_app
from sqlalchemy import ColumnElement, func, literal, or_, select, union_all

from webapp.admin.pages import blueprint, live_page
from webapp.extensions import database_now, db
from webapp.jobs import QUEUE_OF_TABLE
from webapp.models import (
    Comparison,
    Dataset,
    Evaluation,
    Heatmap,
    JobStatus,
    Leased,
    Notification,
    Report,
    Scan,
    SiteFigures,
    TrainingRun,
    Worker,
    live_version,
)

WORK: dict[type[Leased], str] = {
    Scan: "Scans",
    Heatmap: "Heat maps",
    Report: "Reports",
    Notification: "Notifications",
    Dataset: "Data sets",
    SiteFigures: "Site figures",
    Comparison: "Comparisons",
    Evaluation: "Evaluations",
    TrainingRun: "Training runs",
}
COUNTED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED)
SECONDS_IN_VIEW = 24 * 3600
STUCK_S = 300
"""A job queued for longer has no worker, or too few."""
MOST_SHOWN = 50


@blueprint.get("")
@blueprint.get("/progress", endpoint="operations_progress")
def operations() -> Response:
    """Show live models, stuck and running jobs, queues and workers, with times by the database's
    clock.
    """
    now: datetime = db.session.scalars(select(database_now())).one()
    in_view = (
        select(Worker)
        .where(Worker.seen_at > database_now(-SECONDS_IN_VIEW))
        .order_by(Worker.queue, Worker.seen_at.desc())
    )
    return live_page(
        "operations",
        pending=True,
        current={reads: live_version(reads) for reads in ("slice", "series")},
        stuck=[
            {"what": what, "job": job} for table, what in WORK.items() for job in stuck_jobs(table)
        ],
        running=[
            {"what": what, "job": job}
            for table, what in WORK.items()
            for job in running_jobs(table)
        ],
        queues=count_work(now),
        unsent=unsent_notifications(),
        workers=[
            {"row": worker, "silent_s": seconds_since(worker.seen_at, now)}
            for worker in db.session.scalars(in_view)
        ],
        lease_s=current_app.config["LEASE_S"],
        most=MOST_SHOWN,
    )


def count_work(now: datetime) -> list[dict[str, object]]:
    """Return, for each kind of job, how many are queued, running and failed, and the age of the
    oldest queued one (None if there is none), in one query that uses the indexes.
    """
    counts = {
        (what, status): (number, oldest)
        for what, status, number, oldest in db.session.execute(
            union_all(
                *(
                    select(literal(what), table.status, func.count(), func.min(table.queued_at))
                    .where(table.status.in_(COUNTED))
                    .group_by(table.status)
                    for table, what in WORK.items()
                )
            )
        )
    }
    return [
        {
            "what": what,
            "queue": QUEUE_OF_TABLE[table],
            **{status.value: counts.get((what, status), (0, None))[0] for status in COUNTED},
            "oldest_s": seconds_since(counts[what, JobStatus.QUEUED][1], now)
            if (what, JobStatus.QUEUED) in counts
            else None,
        }
        for table, what in WORK.items()
    ]


def stuck_jobs(table: type[Leased]) -> list[Leased]:
    """Return the oldest rows of `table` whose lease has expired, or that have been queued for
    longer than STUCK_S.
    """
    expired = (table.status == JobStatus.RUNNING) & (table.lease_expires_at < database_now())
    waiting = (table.status == JobStatus.QUEUED) & (table.queued_at < database_now(-STUCK_S))
    if table is Notification:  # One that waits for its next try has a section of its own.
        waiting &= or_(table.retry_at.is_(None), table.retry_at < database_now(-STUCK_S))
    return sorted(
        [*oldest_rows(table, expired), *oldest_rows(table, waiting)],
        key=lambda row: (row.queued_at, row.id),
    )[:MOST_SHOWN]


def unsent_notifications() -> list[Notification]:
    """Return the newest notifications that failed for good, or at least once and wait for another
    try.
    """
    with_error = Notification.error.is_not(None)
    rows = [
        row
        for status in (JobStatus.QUEUED, JobStatus.FAILED)
        for row in db.session.scalars(
            select(Notification)
            .where(Notification.status == status, with_error)
            .order_by(Notification.queued_at.desc())
            .limit(MOST_SHOWN)
        )
    ]
    return sorted(rows, key=lambda row: row.queued_at, reverse=True)[:MOST_SHOWN]


def running_jobs(table: type[Leased]) -> list[Leased]:
    """Return the oldest running rows of `table` with a valid lease."""
    return oldest_rows(
        table, (table.status == JobStatus.RUNNING) & (table.lease_expires_at >= database_now())
    )


def oldest_rows(table: type[Leased], of_one_status: ColumnElement[bool]) -> list[Leased]:
    """Return the oldest rows with this condition on a single status, so that the index applies."""
    return list(
        db.session.scalars(
            select(table).where(of_one_status).order_by(table.queued_at, table.id).limit(MOST_SHOWN)
        )
    )


def seconds_since(then: datetime, now: datetime) -> float:
    """Return the seconds from `then` to `now`, at least 0."""
    return max((now - then).total_seconds(), 0.0)
