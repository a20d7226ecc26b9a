"""Who is at work, what waits, and what is live."""

from __future__ import annotations

from flask import Response, current_app
from sqlalchemy import func, literal, select, union_all

from webapp.admin.pages import blueprint, live_page
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT, TRAIN
from webapp.models import Dataset, Heatmap, JobStatus, Scan, TrainingRun, Worker, live_version

QUEUED_WORK = (
    ("Scans", PREDICT, Scan),
    ("Heat maps", PREDICT, Heatmap),
    ("Data sets", TRAIN, Dataset),
    ("Training runs", TRAIN, TrainingRun),
)
COUNTED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED)
SECONDS_IN_VIEW = 24 * 3600


@blueprint.get("")
@blueprint.get("/progress", endpoint="overview_progress")
def overview() -> Response:
    """Show workers, queues and live versions."""
    lease_s = current_app.config["LEASE_S"]
    # Ages are told on the database's clock, by which the workers report themselves.
    seen = db.session.execute(
        select(Worker, database_now()).where(Worker.seen_at > database_now(-SECONDS_IN_VIEW)).order_by(Worker.queue, Worker.seen_at.desc())
    )
    workers = [{"row": worker, "silent_s": max((now - worker.seen_at).total_seconds(), 0)} for worker, now in seen]
    return live_page(
        "overview",
        pending=True,
        workers=workers,
        lease_s=lease_s,
        queues=count_queued_work(),
        current={reads: live_version(reads) for reads in ("slice", "series")},
    )


def count_queued_work() -> list[dict[str, object]]:
    """Return, for each kind of work, how many rows are queued, running and failed, in one query over the indexes."""
    counts = {
        (what, status): number
        for what, status, number in db.session.execute(
            union_all(
                *(
                    select(literal(what), model.status, func.count()).where(model.status.in_(COUNTED)).group_by(model.status)
                    for what, _, model in QUEUED_WORK
                )
            )
        )
    }
    return [
        {"what": what, "queue": queue, **{status.value: counts.get((what, status), 0) for status in COUNTED}}
        for what, queue, _ in QUEUED_WORK
    ]
