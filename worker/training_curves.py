"""The curves of a training run in progress: rows that pages draw."""

from __future__ import annotations

import math

from sqlalchemy import ColumnElement, delete, insert, or_, tuple_

from ml.training.progress import Progress
from webapp.extensions import db
from webapp.models import CURVE_STEPS, TrainingPoint

EPOCH = "epoch"


class Curves:
    """The metrics that a run has reported since they were last written.

    Each is averaged over one of `CURVE_STEPS` equal parts of the run, so that a run of a million
    batches has no more rows than one of a thousand. A run that resumes from a checkpoint, or starts
    over, overwrites the parts that it repeats.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._sums: dict[tuple[str, int], tuple[float, int]] = {}
        self._places: dict[int, tuple[str, int | None]] = {}
        self._changed: set[tuple[str, int]] = set()
        self._has_written = False

    def add(self, progress: Progress) -> None:
        """Add the metrics that a training run reports; values that are not numbers are left out."""
        step = min(int(progress.fraction * CURVE_STEPS), CURVE_STEPS - 1)
        epoch = progress.metrics.get(EPOCH)
        self._places[step] = progress.stage, None if epoch is None else int(epoch)
        for metric, value in progress.metrics.items():
            if metric != EPOCH and math.isfinite(value):
                total, count = self._sums.get((metric, step), (0.0, 0))
                self._sums[metric, step] = total + float(value), count + 1
                self._changed.add((metric, step))

    def write(self) -> None:
        """Write what has changed; the caller commits. After a rollback, only the points of this
        call are lost.
        """
        if not self._changed:
            return
        changed = sorted(self._changed)
        self._changed.clear()
        newest = max(step for _, step in changed)
        outdated: ColumnElement[bool] = tuple_(TrainingPoint.metric, TrainingPoint.step).in_(
            changed
        )
        if not self._has_written:
            outdated = or_(outdated, TrainingPoint.step > newest)  # of an attempt that got further
        db.session.execute(
            delete(TrainingPoint).where(TrainingPoint.run_id == self._run_id, outdated),
            execution_options={"synchronize_session": False},
        )
        db.session.execute(insert(TrainingPoint), [self._row(*key) for key in changed])
        self._has_written = True
        self._sums = {key: total for key, total in self._sums.items() if key[1] >= newest}
        self._places = {step: place for step, place in self._places.items() if step >= newest}

    def _row(self, metric: str, step: int) -> dict[str, object]:
        total, count = self._sums[metric, step]
        stage, epoch = self._places[step]
        return {
            "run_id": self._run_id,
            "metric": metric[:40],
            "step": step,
            "value": total / count,
            "stage": stage[:200],
            "epoch": epoch,
        }
