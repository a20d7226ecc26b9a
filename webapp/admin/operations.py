"""What is stuck, what runs, what waits, and who is there to do it."""

from __future__ import annotations

from flask import Response, current_app
from sqlalchemy import func, or_, select

from webapp.admin.overview import QUEUED_WORK, SECONDS_IN_VIEW
from webapp.admin.pages import blueprint, live_page
from webapp.extensions import database_now, db
from webapp.models import JobStatus, Leased, Worker

STUCK_S = 300
"""A row that waits longer has no worker, or too few."""
MOST_SHOWN = 50


@blueprint.get("/operations")
@blueprint.get("/operations/progress", endpoint="operations_progress")
def operations() -> Response:
    """Show workers, queues, running jobs and stuck ones, all from SQL and on the database's clock."""
    seen = db.session.execute(
        select(Worker, database_now()).where(Worker.seen_at > database_now(-SECONDS_IN_VIEW)).order_by(Worker.queue, Worker.seen_at.desc())
    )
    return live_page(
        "operations",
        pending=True,
        workers=[{"row": worker, "silent_s": max((now - worker.seen_at).total_seconds(), 0)} for worker, now in seen],
        lease_s=current_app.config["LEASE_S"],
        queues=[{"what": what, "queue": queue, **depth_of(table)} for what, queue, table in QUEUED_WORK],
        running=[{"what": what, "job": job} for what, _, table in QUEUED_WORK for job in jobs(table, stuck=False)],
        stuck=[{"what": what, "job": job} for what, _, table in QUEUED_WORK for job in jobs(table, stuck=True)],
        most=MOST_SHOWN,
    )


def depth_of(table: type[Leased]) -> dict[str, float | None]:
    """Return how many rows of `table` are queued and how old the oldest is (None without one), by the index."""
    queued = select(func.count(), func.min(table.created_at), database_now()).where(table.status == JobStatus.QUEUED)
    number, oldest, now = db.session.execute(queued).one()
    return {"queued": number, "oldest_s": max((now - oldest).total_seconds(), 0) if oldest else None}


def jobs(table: type[Leased], *, stuck: bool) -> list[Leased]:
    """Return the oldest rows of `table` that run under a lease, or that are stuck: lease expired, or queued for STUCK_S."""
    expired = (table.status == JobStatus.RUNNING) & (table.lease_expires_at < database_now())
    waiting = (table.status == JobStatus.QUEUED) & (table.created_at < database_now(-STUCK_S))
    running = (table.status == JobStatus.RUNNING) & (table.lease_expires_at >= database_now())
    chosen = or_(expired, waiting) if stuck else running
    return list(db.session.scalars(select(table).where(chosen).order_by(table.created_at, table.id).limit(MOST_SHOWN)))
