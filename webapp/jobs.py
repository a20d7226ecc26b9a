"""The contract with the workers: queues, task names, and the messages ("nudges") that wake them.

The jobs are rows. A nudge only says "look in the database", so it may be lost, duplicated or late.
"""

from __future__ import annotations

import logging

from celery import Celery
from flask import Flask, current_app
from kombu.exceptions import OperationalError

from webapp.models import (
    Comparison,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    Leased,
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
)

log = logging.getLogger(__name__)

PREDICT, TRAIN, MAINTENANCE = QUEUES = ("predict", "train", "maintenance")

PREDICT_SCANS = "hemoscan.predict_scans"
TRAIN_MODEL = "hemoscan.train_model"
IMPORT_DATASET = "hemoscan.import_dataset"
SWEEP = "hemoscan.sweep"
CLEAN_UP = "hemoscan.clean_up"

QUEUE_OF_TASK = {
    PREDICT_SCANS: PREDICT,
    TRAIN_MODEL: TRAIN,
    IMPORT_DATASET: TRAIN,
    SWEEP: MAINTENANCE,
    CLEAN_UP: MAINTENANCE,
}

QUEUE_OF_TABLE: dict[type[Leased], str] = {
    Scan: PREDICT,
    Heatmap: PREDICT,
    Report: PREDICT,
    Replay: PREDICT,
    ShadowAnswer: PREDICT,
    Preview: PREDICT,
    Notification: MAINTENANCE,
    ResultDelivery: MAINTENANCE,
    Dataset: TRAIN,
    DatasetAnalysis: TRAIN,
    SiteFigures: TRAIN,
    Comparison: TRAIN,
    Evaluation: TRAIN,
    TrainingRun: TRAIN,
    PaperExperiment: TRAIN,
}
"""Which workers claim the rows of which table."""

IN_BACKGROUND: frozenset[type[Leased]] = frozenset({Replay, ShadowAnswer})
"""Tables whose rows nobody waits for: workers claim them when there is nothing else to do, so a row
that waits for hours is not a problem.
"""


def make_celery(app: Flask) -> Celery:
    """Return the Celery application for `app`; comments give the reason for each setting."""
    celery = Celery("hemoscan", broker=app.config["BROKER_URL"], set_as_current=False)
    celery.conf.update(
        # The state of a job is in the database only, so Celery keeps no results.
        task_ignore_result=True,
        # Never deserialize anything from the broker that could run code.
        task_serializer="json",
        accept_content=["json"],
        task_routes={task: {"queue": queue} for task, queue in QUEUE_OF_TASK.items()},
        task_create_missing_queues=True,
        # Leases, not the broker, bring work back, so nudges are acknowledged on receipt and never
        # redelivered.
        task_acks_late=False,
        # A worker takes one nudge at a time; others would wait behind its batch while another
        # worker is idle.
        worker_prefetch_multiplier=1,
        # A child loads its model before it accepts work, which may exceed the default of 4 s on a
        # slow machine.
        worker_proc_alive_timeout=120,
        # Workers survive a restart of the broker, and may start before it.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # The queue is short (`sweep` refills it), so events and gossip between workers would be
        # most of its traffic.
        worker_send_task_events=False,
        # A web request does not wait for an unreachable broker: the row is committed, and the
        # sweeper sends the nudge later.
        task_publish_retry=False,
        broker_transport_options={
            "socket_connect_timeout": 0.5,
            "socket_timeout": 0.5,
            "retry_on_timeout": False,
            "max_retries": 0,
            # A nudge is removed from the broker when it is received. Acknowledging it would take a
            # second message; a worker that could not send that message during a restart of the
            # broker would never take another nudge.
            "ack_emulation": False,
        },
        redis_socket_connect_timeout=0.5,
        worker_hijack_root_logger=False,
        timezone="UTC",
    )
    app.extensions["celery"] = celery
    return celery


def nudge(task: str) -> bool:
    """Wake a worker for `task`; return False if the broker is unreachable, in which case the
    sweeper does it later.
    """
    celery: Celery = current_app.extensions["celery"]
    try:
        celery.send_task(task, queue=QUEUE_OF_TASK[task])
    except (OperationalError, OSError) as err:
        log.warning(
            "The broker cannot be reached; %s waits for the sweeper: %s", task, type(err).__name__
        )
        return False
    return True
