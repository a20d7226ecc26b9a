"""The sweep: returns rows of dead workers to the queue, and replaces lost nudges."""

from __future__ import annotations

import logging

from celery import Celery
from flask import current_app
from kombu.exceptions import OperationalError
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import OperationalError as DatabaseError

from webapp import jobs, logs
from webapp.audit_chain import seal
from webapp.extensions import database_now, db, forget_deleted, is_busy
from webapp.models import (
    Comparison,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    JobStatus,
    Leased,
    ModelVersion,
    Notification,
    PaperExperiment,
    Preview,
    Replay,
    Report,
    ResultDelivery,
    Scan,
    ShadowAnswer,
    SiteFigures,
    TrainingRun,
    Worker,
    end_shadows,
    waits_for_check,
)
from worker import leases
from worker.heartbeat import heartbeat, remove_abandoned_folders

log = logging.getLogger(__name__)

DOING: dict[type[Leased], str] = {
    Scan: "was analyzing this scan",
    Heatmap: "was generating this heat map",
    Report: "was creating this report",
    Replay: "was reproducing this result",
    ShadowAnswer: "was analyzing this scan in shadow mode",
    Preview: "was generating these images",
    Notification: "was sending this notification",
    ResultDelivery: "was sending this result",
    Dataset: "was importing this data set",
    DatasetAnalysis: "was analyzing this data set",
    SiteFigures: "was computing these figures",
    Comparison: "was comparing these versions",
    Evaluation: "was evaluating this version",
    TrainingRun: "was training without reaching a new checkpoint",
    PaperExperiment: "was running the paper’s experiment without reaching a new checkpoint",
}
# Nudges of a queue are interchangeable: each makes a worker look for every kind of work in it.
NUDGE_OF_QUEUE = {jobs.PREDICT: jobs.PREDICT_SCANS, jobs.TRAIN: jobs.TRAIN_MODEL}
SILENT_FOR_GOOD_S = 24 * 3600


def sweep() -> None:
    """Requeue abandoned rows, nudge workers and clean up; safe for several maintenance workers at
    once.

    If the database is locked for too long, the next sweep tries again.
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
        forget_deleted(waits_s=())  # Deleted data that a reader kept from being cleared.


def bring_back() -> None:
    """Requeue rows of dead workers, and make sure that each queue has enough nudges."""
    note_delivery()
    for table, what in DOING.items():
        reaped = leases.reap(table, what)
        db.session.commit()
        for row_id, status in reaped.items():
            ids = {logs.ids_field(table): [row_id]}
            log.warning(
                "%s=%s lost its worker and is %s",
                table.__name__.lower(),
                row_id,
                status,
                extra=ids,
            )
    end_shadows()
    db.session.commit()
    seal()
    db.session.commit()
    for queue in NUDGE_OF_QUEUE:
        if not top_up(queue):
            break
    db.session.execute(delete(Worker).where(Worker.seen_at < database_now(-SILENT_FOR_GOOD_S)))
    db.session.commit()


def note_delivery() -> None:
    """Record that the broker delivered a message to this worker, for the readiness check."""
    db.session.execute(
        update(Worker).where(Worker.id == heartbeat().owner).values(delivered_at=database_now())
    )
    db.session.commit()


def top_up(queue: str) -> bool:
    """Send nudges until min(queued rows, 2 x live workers) are in `queue`; return False if the
    broker is unreachable.

    A worker with an alarm counts as a queued row, because it loads the live model again only when
    it is nudged; without scans to analyze, it would keep its alarm after the repair.
    """
    live = (
        select(func.count())
        .select_from(Worker)
        .where(Worker.queue == queue, Worker.seen_at > database_now(-current_app.config["LEASE_S"]))
    )
    most = max(1, 2 * (db.session.scalar(live) or 0))
    queued = 0
    for table in (table for table, of in jobs.QUEUE_OF_TABLE.items() if of == queue):
        # Counted up to `most` only, because the queue may have ten thousand rows.
        waits = (table.status == JobStatus.QUEUED, leases.is_due(table))
        some = select(table.id).where(*waits).limit(most).subquery()
        queued += db.session.scalar(select(func.count()).select_from(some)) or 0
    if queue == jobs.PREDICT:
        checks = select(func.count()).select_from(ModelVersion).where(waits_for_check())
        queued += db.session.scalar(checks) or 0
        queued += db.session.scalar(live.where(Worker.alarm.is_not(None))) or 0
    if queue == jobs.TRAIN:
        without = select(func.count()).select_from(ModelVersion)
        queued += db.session.scalar(without.where(ModelVersion.curves.is_(None))) or 0
    db.session.commit()
    if not queued:
        return True
    waiting = nudges_in(queue)
    if waiting is None:
        return False
    return all(jobs.nudge(NUDGE_OF_QUEUE[queue]) for _ in range(min(queued, most) - waiting))


def nudges_in(queue: str) -> int | None:
    """Return how many messages are in the broker's queue, so that they do not pile up; None if it
    is unreachable.
    """
    celery: Celery = current_app.extensions["celery"]
    with celery.connection_for_write() as connection:
        try:
            return int(connection.default_channel.client.llen(queue))
        except (OperationalError, *connection.connection_errors) as err:
            log.warning("The broker cannot be reached: %s", type(err).__name__)
            return None
