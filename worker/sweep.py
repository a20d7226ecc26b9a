"""What brings work back: rows whose worker died return to the queue, and a queue whose nudges were
lost gets new ones.
"""

from __future__ import annotations

import logging

from celery import Celery
from flask import current_app
from kombu.exceptions import OperationalError
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import OperationalError as DatabaseError

from webapp import jobs, logs
from webapp.extensions import database_now, db, forget_deleted, is_busy
from webapp.models import (
    Dataset,
    Heatmap,
    JobStatus,
    Leased,
    ModelVersion,
    Scan,
    TrainingRun,
    Worker,
    waits_for_check,
)
from worker import leases
from worker.heartbeat import presence, remove_abandoned_folders

log = logging.getLogger(__name__)

DOING: dict[type[Leased], str] = {
    Scan: "was analyzing this scan",
    Heatmap: "was generating this heat map",
    Dataset: "was importing this data set",
    TrainingRun: "was training without reaching a new checkpoint",
}
# Nudges of a queue are interchangeable: each makes a worker look for all that the queue is for.
NUDGE_OF_QUEUE = {jobs.PREDICT: jobs.PREDICT_SCANS, jobs.TRAIN: jobs.TRAIN_MODEL}
SILENT_FOR_GOOD_S = 24 * 3600


def sweep() -> None:
    """Reap, nudge and tidy; any number of maintenance workers may do so at once.

    A database that others hold for too long is left to the next sweep.
    """
    try:
        bring_back()
        remove_abandoned_folders()
    except DatabaseError as err:
        db.session.rollback()
        if not is_busy(err):
            raise
        log.warning("the database was busy for too long; the next sweep comes in seconds")
    else:
        forget_deleted(waits_s=())  # What a deletion could not, because somebody was reading.


def bring_back() -> None:
    """Return work to its queue whose worker died, and see to it that somebody looks there."""
    note_delivery()
    for table, what in DOING.items():
        reaped = leases.reap(table, what)
        db.session.commit()
        for row_id, status in reaped.items():
            told = {logs.ids_field(table): [row_id]}
            log.warning(
                "%s=%s lost its worker and is %s",
                table.__name__.lower(),
                row_id,
                status,
                extra=told,
            )
    for queue in NUDGE_OF_QUEUE:
        if not top_up(queue):
            break
    db.session.execute(delete(Worker).where(Worker.seen_at < database_now(-SILENT_FOR_GOOD_S)))
    db.session.commit()


def note_delivery() -> None:
    """Write that the broker brought this worker a message: the readiness check reads it instead of
    asking the broker.
    """
    db.session.execute(
        update(Worker).where(Worker.id == presence().owner).values(delivered_at=database_now())
    )
    db.session.commit()


def top_up(queue: str) -> bool:
    """Send nudges until min(queued rows, 2 x live workers) wait in `queue`; False if the broker
    cannot be reached.
    """
    live = (
        select(func.count())
        .select_from(Worker)
        .where(Worker.queue == queue, Worker.seen_at > database_now(-current_app.config["LEASE_S"]))
    )
    most = max(1, 2 * (db.session.scalar(live) or 0))
    queued = 0
    for table in (table for table, of in jobs.QUEUE_OF_TABLE.items() if of == queue):
        # No further than is of interest: the queue may be ten thousand rows long.
        waits = (table.status == JobStatus.QUEUED, leases.is_due(table))
        some = select(table.id).where(*waits).limit(most).subquery()
        queued += db.session.scalar(select(func.count()).select_from(some)) or 0
    if queue == jobs.PREDICT:
        asked = select(func.count()).select_from(ModelVersion).where(waits_for_check())
        queued += db.session.scalar(asked) or 0
    db.session.commit()
    if not queued:
        return True
    waiting = nudges_in(queue)
    if waiting is None:
        return False
    return all(jobs.nudge(NUDGE_OF_QUEUE[queue]) for _ in range(min(queued, most) - waiting))


def nudges_in(queue: str) -> int | None:
    """Return how many messages wait in the broker, so that an idle minute does not pile them up;
    None if it cannot be reached.
    """
    celery: Celery = current_app.extensions["celery"]
    with celery.connection_for_write() as connection:
        try:
            return int(connection.default_channel.client.llen(queue))
        except (OperationalError, *connection.connection_errors) as err:
            log.warning("The broker cannot be reached: %s", type(err).__name__)
            return None
