"""The workers' Celery application. Everything that must not be forked is created in the child
processes, never in the parent.

    python -m celery -A worker.app worker -Q predict -c 1 QUIET
    python -m celery -A worker.app worker -Q train -c 1 --max-tasks-per-child 1 QUIET
    python -m celery -A worker.app worker -Q maintenance -P solo QUIET

where QUIET is `--without-mingle --without-gossip --without-heartbeat` (without mingling, a worker
is ready a second sooner). The maintenance worker has no children (`solo`): its tasks are short, and
a timer in the same process sends them. A second worker on the same machine needs its own name, such
as `-n predict-2@%h`. SIGTERM or SIGINT, sent to the parent or its process group, stops a worker
gracefully: it finishes its batch, or returns its training run to the queue with the checkpoint.
"""

from __future__ import annotations

import gc
import logging
import logging.config
import mmap
import signal
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import billiard
from celery import Celery, signals
from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

import webapp
from webapp import jobs, logs
from webapp.extensions import db
from worker import leases, tasks
from worker.heartbeat import Heartbeat, has_died
from worker.process_secrets import forget_secrets

log = logging.getLogger(__name__)

CLEAN_UP_S = 3600
"""Lists all files in the storage, so it runs less often than the sweep."""

BROKER_S = 10.0
"""A worker that waits longer for the broker reconnects."""

_stop = mmap.mmap(-1, 1)
"""One byte that the parent shares with its children: 1 once they should stop. A signal could
interrupt a child at any point.
"""

_storage_away = mmap.mmap(-1, 1)
"""Another shared byte: 1 while the storage is unavailable, so that it is logged only once."""

_last_child = mmap.mmap(-1, 200)
"""The `Heartbeat.owner` of the child that started last, whose rows the next one may return."""


def stopping() -> bool:
    """Return whether this worker was asked to stop."""
    return _stop[0] != 0


def create_app(config: Mapping[str, Any] | None = None) -> Celery:
    """Return the Celery application with its tasks and the life of a worker process."""
    app = webapp.create_core(config)
    celery: Celery = app.extensions["celery"]
    celery.conf.update(
        # A worker can wait longer for a busy broker than a web request.
        broker_transport_options={
            **celery.conf.broker_transport_options,
            "socket_timeout": BROKER_S,
        },
        # The state of workers is in the database, so nothing needs remote control.
        worker_enable_remote_control=False,
    )
    for name, work in (
        (jobs.PREDICT_SCANS, tasks.predict_scans),
        (jobs.TRAIN_MODEL, tasks.train_model),
        (jobs.IMPORT_DATASET, tasks.train_model),
        (jobs.SWEEP, tasks.sweep),
        (jobs.CLEAN_UP, tasks.clean_up),
    ):
        celery.task(name=name)(in_context_of(app, work))
    live_as_worker(app, celery)
    return celery


def in_context_of(app: Flask, work: Callable[[], None]) -> Callable[[], None]:
    """Return `work` wrapped in the application's context."""

    @wraps(work)
    def task() -> None:
        with app.app_context():
            work()

    return task


def live_as_worker(app: Flask, celery: Celery) -> None:
    """Connect the signals for the start and stop of the parent and its children.

    One function, because the handlers of Celery's signals are closures over `app` and the state
    that they share.
    """

    def refuse_wrong_queue(**_: Any) -> None:
        queues = set(celery.amqp.queues.consume_from)
        if len(queues) != 1 or not queues <= set(jobs.QUEUES):
            raise SystemExit(
                f"A worker serves one queue: -Q {', -Q '.join(jobs.QUEUES[:-1])} or -Q"
                f" {jobs.QUEUES[-1]}."
            )
        # Without fork (the default start method on macOS), the child would not have this
        # application.
        billiard.set_start_method("fork", force=True)
        # Children share the pages that are loaded; the garbage collector would write to each of
        # them.
        gc.freeze()

    def keep_secrets(**_: Any) -> None:
        forget_secrets()

    def write_json(loglevel: int = logging.WARNING, **_: Any) -> None:
        logging.captureWarnings(True)
        logging.config.dictConfig(logs.json_logging(loglevel))

    def prepare_to_stop(**_: Any) -> None:
        _stop[0] = 1  # Signals the children.
        # A message that still arrives returns to its queue; kombu would log a warning about it.
        logging.getLogger("kombu.transport.virtual.base").setLevel(logging.ERROR)

    def begin(**_: Any) -> None:
        if billiard.current_process().name != "MainProcess":  # A child.
            # The parent decides when it stops; a signal to the process group must not interrupt a
            # batch.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with app.app_context():
            db.engine.dispose(close=False)
            (queue,) = celery.amqp.queues.consume_from
            mine = app.extensions["heartbeat"] = Heartbeat(app, queue, stopping, _storage_away)
            logs.name_worker(mine.owner)
            last_owner = _last_child[:].rstrip(b"\0").decode()
            _last_child[:] = mine.owner.encode().ljust(len(_last_child), b"\0")
            if last_owner:
                return_rows_of(last_owner)
            if queue == jobs.PREDICT:
                prepare_to_predict()
        app.extensions["heartbeat"].start()

    def end(**_: Any) -> None:
        if mine := app.extensions.pop("heartbeat", None):  # The parent of children has none.
            mine.stop()

    def send_regularly(sender: Any, **_: Any) -> None:
        if jobs.MAINTENANCE not in celery.amqp.queues.consume_from:
            return
        for task, every_s in ((jobs.SWEEP, app.config["SWEEP_S"]), (jobs.CLEAN_UP, CLEAN_UP_S)):
            # Now as well: until a sweep has run, /readyz cannot know whether the broker delivers,
            # and a service that is stopped every evening would rarely clean up.
            send(task)
            sender.timer.call_repeatedly(every_s, send, [task])

    def send(task: str) -> None:
        # Through the broker, although this worker receives it: `/readyz` shows whether that works.
        with app.app_context():
            jobs.nudge(task)

    # weak=False: nothing else keeps a reference to these functions.
    signals.celeryd_init.connect(keep_secrets, weak=False)
    if app.config["LOG_FORMAT"] == "json":
        # Celery may log a warning about root privileges before it sets up logging.
        signals.celeryd_init.connect(write_json, weak=False)
        signals.setup_logging.connect(write_json, weak=False)
    signals.celeryd_after_setup.connect(refuse_wrong_queue, weak=False)
    signals.worker_shutting_down.connect(prepare_to_stop, weak=False)
    signals.worker_ready.connect(send_regularly, weak=False)
    signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)
    signals.worker_shutdown.connect(end, weak=False)


def return_rows_of(last_owner: str) -> None:
    """Have the sweep return the rows of the previous child, if it was killed, without waiting for
    its leases to expire. A child that ended normally holds none.
    """
    if not has_died(last_owner):
        return
    try:
        for table in jobs.QUEUE_OF_TABLE:
            leases.expire(table, last_owner)
        db.session.commit()
    except SQLAlchemyError as err:  # The leases expire by themselves.
        db.session.rollback()
        log.warning("the rows of %s wait for their leases: %s", last_owner, type(err).__name__)
    else:
        jobs.nudge(jobs.SWEEP)


def prepare_to_predict() -> None:
    """Load the live models, so that the first scan does not have to wait; if that fails, the worker
    starts anyway.
    """
    # Imported here, in the child, because it loads what cannot be forked.
    from worker.prediction import warm_up

    try:
        warm_up()
    except Exception:  # The first scan will run into the same error.
        db.session.rollback()
        log.warning("the live model could not be loaded in advance", exc_info=True)


celery = create_app()
