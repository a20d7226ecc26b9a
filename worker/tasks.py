"""The tasks: each looks into the database for all that its queue is for. A task of this module is
one line; the work is beside it.

The modules that do the work are imported by the task, in the child, because they load numpy, ONNX
Runtime or TensorFlow, and a Celery parent that had loaded these could not fork.
"""

from __future__ import annotations

from flask import current_app

from worker.heartbeat import presence


def predict_scans() -> None:
    """Check what somebody wants to promote, answer scans until none is queued, then draw heat maps;
    verdicts go before maps.
    """
    from worker.heat_maps import draw_next_heatmap
    from worker.prediction import answer_next_scans
    from worker.retries import storage_is_back
    from worker.version_check import check_next_version

    while (
        not presence().stopping()
        and storage_is_back()
        and (check_next_version() or answer_next_scans() or draw_next_heatmap())
    ):
        pass


def train_model() -> None:
    """Import one data set or, where none is queued, train one run: then the pool renews this
    process.
    """
    from worker.dataset_import import import_next_dataset
    from worker.retries import storage_answers

    # A training fetches much before it would miss the storage.
    if presence().stopping() or not storage_answers() or import_next_dataset():
        return
    # Here, because it loads TensorFlow, which an import does not need.
    from worker.training import train_next_run

    train_next_run()


def sweep() -> None:
    """Bring back what died, and nudge."""
    from worker.sweep import sweep

    sweep()


def tidy() -> None:
    """Begin to remove what is too old and what no row names; sweeps go on meanwhile."""
    from worker.retention import tidy_meanwhile

    tidy_meanwhile(current_app._get_current_object())  # type: ignore[attr-defined]
