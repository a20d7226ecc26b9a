"""The contract with the workers: queues, task names, and the nudges that wake them.

The rows are the jobs. A nudge says only "look into the database", so it may be lost, doubled or
late.
"""

from __future__ import annotations

import logging

from celery import Celery
from flask import Flask, current_app
from kombu.exceptions import OperationalError

from webapp.models import Dataset, Heatmap, Leased, Scan, TrainingRun

log = logging.getLogger(__name__)

PREDICT, TRAIN, MAINTENANCE = QUEUES = ("predict", "train", "maintenance")

PREDICT_SCANS = "hemoscan.predict_scans"
TRAIN_MODEL = "hemoscan.train_model"
IMPORT_DATASET = "hemoscan.import_dataset"
SWEEP = "hemoscan.sweep"
TIDY = "hemoscan.tidy"

QUEUE_OF_TASK = {
    PREDICT_SCANS: PREDICT,
    TRAIN_MODEL: TRAIN,
    IMPORT_DATASET: TRAIN,
    SWEEP: MAINTENANCE,
    TIDY: MAINTENANCE,
}

QUEUE_OF_TABLE: dict[type[Leased], str] = {
    Scan: PREDICT,
    Heatmap: PREDICT,
    Dataset: TRAIN,
    TrainingRun: TRAIN,
}
"""Which workers claim the rows of which table."""


def make_celery(app: Flask) -> Celery:
    """Return the Celery application with this app's settings; each setting argues for itself."""
    celery = Celery("hemoscan", broker=app.config["BROKER_URL"], set_as_current=False)
    celery.conf.update(
        # The database is the only truth about a job, so Celery keeps no results.
        task_ignore_result=True,
        # Nothing that could run code is ever read from the broker.
        task_serializer="json",
        accept_content=["json"],
        task_routes={task: {"queue": queue} for task, queue in QUEUE_OF_TASK.items()},
        task_create_missing_queues=True,
        # The lease, not the broker, brings work back: a nudge is acknowledged on receipt and never
        # redelivered.
        task_acks_late=False,
        # A worker takes one nudge at a time; more would wait behind its batch while another worker
        # idles.
        worker_prefetch_multiplier=1,
        # A prefork child loads its model before it takes work; on a slow machine that may exceed
        # the default 4 s.
        worker_proc_alive_timeout=120,
        # Workers outlive a broker that is restarted, and may start before it.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # The queue is never long (`sweep` tops it up), so gossip between workers and events would
        # be all its traffic.
        worker_send_task_events=False,
        # A web request that nudges a broker which is gone, or does not answer, gives up at once:
        # the row is committed, the sweeper nudges later.
        task_publish_retry=False,
        broker_transport_options={
            "socket_connect_timeout": 0.5,
            "socket_timeout": 0.5,
            "retry_on_timeout": False,
            "max_retries": 0,
            # A nudge is gone from the broker once it is received. To acknowledge it there would be
            # a second message, and a worker that could not send that one, the broker being
            # restarted, would wait for its only prefetched nudge for ever and take no other.
            "ack_emulation": False,
        },
        redis_socket_connect_timeout=0.5,
        worker_hijack_root_logger=False,
        timezone="UTC",
    )
    app.extensions["celery"] = celery
    return celery


def nudge(task: str) -> bool:
    """Wake a worker for `task`; False where the broker cannot be reached (the row stays queued and
    the sweeper will).
    """
    celery: Celery = current_app.extensions["celery"]
    try:
        celery.send_task(task, queue=QUEUE_OF_TASK[task])
    except (OperationalError, OSError) as err:
        log.warning(
            "The broker cannot be reached, %s waits for the sweeper: %s", task, type(err).__name__
        )
        return False
    return True
