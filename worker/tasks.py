"""The Celery tasks. Each looks in the database for any work of its queue.

They import the modules that do the work themselves, in the child process, because these load numpy,
ONNX Runtime or TensorFlow, after which the Celery parent could no longer fork.
"""

from __future__ import annotations

from flask import current_app

from worker.heartbeat import presence


def predict_scans() -> None:
    """Check what somebody wants to promote, make a report that somebody waits for, answer scans
    until none is queued, then draw heat maps; verdicts go before maps.
    """
    from worker.heat_maps import draw_next_heatmap
    from worker.prediction import answer_next_scans
    from worker.reports.making import make_next_report
    from worker.retries import storage_is_back
    from worker.version_check import check_next_version

    def has_worked() -> bool:
        if check_next_version():
            return True
        # One report at most before each batch of scans, so that neither waits for long.
        has_reported = make_next_report()
        return answer_next_scans() or has_reported or draw_next_heatmap()

    while not presence().stopping() and storage_is_back() and has_worked():
        pass


def train_model() -> None:
    """Import one data set or, if none is queued, compute site figures, compare two versions,
    evaluate one or train one run; the pool then replaces this process.
    """
    from worker.dataset_import import import_next_dataset
    from worker.retries import storage_answers
    from worker.site_figures import compute_next_figures

    # Otherwise a training would start before it finds that the storage is unavailable.
    if presence().stopping() or not storage_answers():
        return
    if import_next_dataset() or compute_next_figures():
        return
    from worker.comparison import compare_next_pair
    from worker.evaluation import evaluate_next

    # What takes seconds or minutes does not wait behind what takes hours.
    if compare_next_pair() or evaluate_next():
        return
    # Imported here because it loads TensorFlow, which the others do not need.
    from worker.training import train_next_run

    train_next_run()


def sweep() -> None:
    """Requeue the rows of dead workers, nudge live ones, and start sending notifications that are
    due in the background.
    """
    from worker.deliveries import send_meanwhile
    from worker.sweep import sweep

    sweep()
    send_meanwhile(current_app._get_current_object())  # type: ignore[attr-defined]


def tidy() -> None:
    """Start deleting expired scans and orphaned files in the background of the sweeps."""
    from worker.retention import tidy_meanwhile

    tidy_meanwhile(current_app._get_current_object())  # type: ignore[attr-defined]
