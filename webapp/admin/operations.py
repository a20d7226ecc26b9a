"""The page of operations: live models, stuck and running jobs, queues and workers."""

from __future__ import annotations

from datetime import datetime

from flask import Response, current_app, flash, redirect, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import ColumnElement, func, literal, or_, select, union_all

from webapp.admin.pages import blueprint, live_page
from webapp.audit import record
from webapp.audit_chain import newest_check
from webapp.extensions import database_now, db
from webapp.jobs import IN_BACKGROUND, QUEUE_OF_TABLE
from webapp.models import (
    Act,
    Comparison,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    JobStatus,
    Leased,
    Notification,
    PaperExperiment,
    Preview,
    ReceivedStudy,
    Replay,
    Report,
    ResultDelivery,
    Scan,
    ShadowAnswer,
    SiteFigures,
    TrainingRun,
    Worker,
    failed_or_retrying,
    live_version,
)
from webapp.routing import cancel_delivery, retry_delivery, unsent_results

WORK: dict[type[Leased], str] = {
    Scan: "Scans",
    Heatmap: "Heat maps",
    Report: "Reports",
    Replay: "Replays",
    ShadowAnswer: "Shadow answers",
    Preview: "Previews of slices",
    Notification: "Notifications",
    ResultDelivery: "Results sent back",
    Dataset: "Data sets",
    DatasetAnalysis: "Analyses of data sets",
    SiteFigures: "Site figures",
    Comparison: "Comparisons",
    Evaluation: "Evaluations",
    TrainingRun: "Training runs",
    PaperExperiment: "Paper’s experiments",
}
COUNTED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED)
SECONDS_IN_VIEW = 24 * 3600
STUCK_S = 300
"""A job that has been queued for longer has no worker, or too few."""
MOST_SHOWN = 50
SENT_MEANWHILE = "This result has been sent or canceled in the meantime."
MOST_RECEIVED = 20


@blueprint.get("")
@blueprint.get("/progress", endpoint="operations_progress")
def operations() -> Response:
    """Show live models, stuck and running jobs, queues and workers, with times by the database's
    clock.
    """
    now: datetime = db.session.scalars(select(database_now())).one()
    queues = count_work(now)
    busy = [queue for queue in queues if any(queue[status.value] for status in COUNTED)]
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
        queues=busy,
        idle=[queue["what"] for queue in queues if queue not in busy],
        unsent=failed_or_retrying(Notification, MOST_SHOWN),
        unsent_results=unsent_results(MOST_SHOWN),
        received=received_studies(),
        workers=[
            {"row": worker, "silent_s": seconds_since(worker.seen_at, now)}
            for worker in recent_workers()
        ],
        audit_check=newest_check(),
        lease_s=current_app.config["LEASE_S"],
        most=MOST_SHOWN,
    )


def recent_workers() -> list[Worker]:
    """Return the workers that were seen in the last `SECONDS_IN_VIEW`."""
    in_view = (
        select(Worker)
        .where(Worker.seen_at > database_now(-SECONDS_IN_VIEW))
        .order_by(Worker.queue, Worker.seen_at.desc())
    )
    return list(db.session.scalars(in_view))


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
    longer than STUCK_S, unless they are work in the background.
    """
    expired = (table.status == JobStatus.RUNNING) & (table.lease_expires_at < database_now())
    waiting = (table.status == JobStatus.QUEUED) & (table.queued_at < database_now(-STUCK_S))
    if table in (
        Notification,
        ResultDelivery,
    ):  # Jobs waiting for their next try are in a separate section.
        waiting &= or_(table.retry_at.is_(None), table.retry_at < database_now(-STUCK_S))
    queued = [] if table in IN_BACKGROUND else oldest_rows(table, waiting)
    return sorted(
        [*oldest_rows(table, expired), *queued],
        key=lambda row: (row.queued_at, row.id),
    )[:MOST_SHOWN]


def received_studies() -> list[ReceivedStudy]:
    """Return the studies that arrived by DICOM most recently, newest first."""
    newest = select(ReceivedStudy).order_by(ReceivedStudy.closed_at.desc()).limit(MOST_RECEIVED)
    return list(db.session.scalars(newest))


@blueprint.post("/results/<delivery_id>/retry")
def retry_result(delivery_id: str) -> ResponseReturnValue:
    """Send a result again that could not be sent, or retry it without waiting."""
    return _to_operations(send_again(delivery_id))


@blueprint.post("/results/<delivery_id>/cancel")
def cancel_result(delivery_id: str) -> ResponseReturnValue:
    """Give up sending a result."""
    return _to_operations(give_up(delivery_id))


def send_again(delivery_id: str) -> bool:
    """Send a result again or retry it without waiting, and commit; return False if it was already
    sent.
    """
    return _recorded(retry_delivery(delivery_id), delivery_id, Act.RESULT_SENT_AGAIN)


def give_up(delivery_id: str) -> bool:
    """Give up sending a result, and commit; return False if it was already sent or canceled."""
    return _recorded(cancel_delivery(delivery_id), delivery_id, Act.RESULT_CANCELLED)


def _recorded(done: bool, delivery_id: str, act: Act) -> bool:
    if done:
        record(act, delivery_id)
    db.session.commit()
    return done


def _to_operations(done: bool) -> ResponseReturnValue:
    if not done:
        flash(SENT_MEANWHILE, "warning")
    return redirect(url_for("admin.operations"))


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
