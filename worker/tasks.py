"""The Celery tasks. Each looks in the database for any work of its queue.

Imported inside the tasks, and therefore in the child process, are the modules that do the work:
they load numpy, ONNX Runtime or TensorFlow, after which the Celery parent could no longer fork.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from flask import current_app

from webapp.models import PaperExperiment, TrainingRun
from worker import leases
from worker.heartbeat import heartbeat


def predict_scans() -> None:
    """Check versions before their promotion, generate a requested report and a preview, analyze
    scans until none is queued, then draw heat maps, run replays, and run shadows.
    """
    from worker.heat_maps import draw_next_heatmap
    from worker.learning.version_check import check_next_version
    from worker.prediction import answer_next_scans
    from worker.previews import make_next_preview
    from worker.replay import replay_next
    from worker.reports.making import make_next_report
    from worker.retries import storage_is_back
    from worker.shadow import answer_next_in_shadow

    def has_worked() -> bool:
        if check_next_version():
            return True
        # One report and one preview at most before each batch of scans, so that none waits for
        # long.
        has_reported, has_shown = make_next_report(), make_next_preview()
        return (
            answer_next_scans()
            or has_reported
            or has_shown
            or draw_next_heatmap()
            or replay_next()
            or answer_next_in_shadow()
        )

    while not heartbeat().stopping() and storage_is_back() and has_worked():
        pass


def train_model() -> None:
    """Carry out one analysis of a data set or, if none is queued, import a data set, compute site
    figures or curves, compare two versions, run an evaluation or a training run; the pool then
    replaces this process.
    """
    from worker.learning.dataset_analysis import analyze_next_dataset
    from worker.learning.dataset_import import import_next_dataset
    from worker.learning.site_figures import compute_next_figures
    from worker.retries import in_transaction, storage_answers

    # Otherwise a training run would start before it finds that the storage is unavailable.
    if heartbeat().stopping() or not storage_answers():
        return
    if analyze_next_dataset() or import_next_dataset() or compute_next_figures():
        return
    from worker.learning.comparison import compare_next_pair
    from worker.learning.evaluation import evaluate_next
    from worker.learning.version_answers import describe_next_version

    # Work of seconds or minutes does not wait behind work of hours.
    describe_next_version()
    if compare_next_pair() or evaluate_next():
        return
    if not in_transaction(lambda: leases.is_any_waiting(TrainingRun, PaperExperiment)):
        return
    # Imported here because these load TensorFlow, which the others do not need.
    with nothing_on_stderr():
        from worker.learning.paper import run_next_experiment
        from worker.learning.training import train_next_run
    # TensorFlow warns of functions that are compiled again; each fold has a separate model.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)

    # An experiment takes hours, so it comes last.
    train_next_run() or run_next_experiment()


@contextmanager
def nothing_on_stderr() -> Iterator[None]:
    """Discard what is written to standard error, including by C++: importing TensorFlow logs the
    processor's features and missing graphics cards, whatever TF_CPP_MIN_LOG_LEVEL says. A failed
    import still raises an exception.
    """
    copy, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(copy, 2)
        os.close(copy)
        os.close(nowhere)


def sweep() -> None:
    """Requeue the rows of dead workers, nudge live ones, and start sending notifications and
    results that are due in the background.
    """
    from worker.sending.notifications import send_notifications_meanwhile
    from worker.sending.results import send_results_meanwhile
    from worker.sweep import sweep

    sweep()
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    send_notifications_meanwhile(app)
    send_results_meanwhile(app)


def clean_up() -> None:
    """Start deleting expired scans and orphaned files in the background of the sweeps."""
    from worker.retention import clean_up_in_background

    clean_up_in_background(current_app._get_current_object())  # type: ignore[attr-defined]
