"""The curves of a training run in progress: rows that pages draw."""

from __future__ import annotations

import math
from itertools import groupby

from sqlalchemy import ColumnElement, delete, insert

from ml.training.progress import Progress
from webapp.extensions import db
from webapp.models import CURVE_STEPS, TrainingPoint

EPOCH, LOSS, OF_EPOCHS = "epoch", "loss", "validation_"
LONGEST_NAME = 40
AVERAGED_STEPS = 10
"""How many steps the loss of batches is averaged over; metrics of epochs have a step each."""


class Curves:
    """The metrics that a run has reported since they were last written.

    The loss is averaged over `AVERAGED_STEPS` of `CURVE_STEPS` equal parts of the run, so that a
    run of a million batches has no more rows than one of a thousand. A point belongs to one fold,
    and a point on held-back images to one epoch: another one that falls into the same part takes
    the next. A run that resumes from a checkpoint, or starts over, overwrites the parts that it
    repeats.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._sums: dict[tuple[str, int], tuple[float, int]] = {}
        self._places: dict[tuple[str, int], tuple[str, int | None]] = {}
        self._changed: set[tuple[str, int]] = set()
        self._has_cut = False

    def add(self, progress: Progress) -> None:
        """Add the metrics that a training run reports; values that are not numbers are left out."""
        epoch = progress.metrics.get(EPOCH)
        place = progress.stage, None if epoch is None else int(epoch)
        for metric, value in progress.metrics.items():
            if metric != EPOCH and math.isfinite(value):
                key = metric, self._step(metric, progress.fraction, place)
                total, count = self._sums.get(key, (0.0, 0))
                self._sums[key] = total + float(value), count + 1
                self._places[key] = place
                self._changed.add(key)

    def _step(self, metric: str, fraction: float, place: tuple[str, int | None]) -> int:
        """Return the step of a point, which is free or belongs to the same place."""
        is_of_epoch = metric.startswith(OF_EPOCHS)
        width = 1 if is_of_epoch else AVERAGED_STEPS
        step = min(int(fraction * CURVE_STEPS), CURVE_STEPS - 1) // width * width
        while (taken := self._places.get((metric, step))) and step + width < CURVE_STEPS:
            if taken == place or (taken[0] == place[0] and not is_of_epoch):
                break
            step += width
        return step

    def write(self) -> None:
        """Write what has changed; the caller commits. After a rollback, only the points of this
        call are lost.
        """
        if not self._changed:
            return
        changed = sorted(self._changed)
        self._changed.clear()
        newest = max(step for _, step in changed)
        # One condition for each metric: PostgreSQL refuses thousands of pairs.
        for metric, keys in groupby(changed, key=lambda key: key[0]):
            steps = [step for _, step in keys]
            self._delete(
                TrainingPoint.metric == metric[:LONGEST_NAME], TrainingPoint.step.in_(steps)
            )
        if not self._has_cut and any(metric == LOSS for metric, _ in changed):
            # Of an attempt that got further. Folds that are read from a checkpoint report no loss,
            # so the points of those that follow them stay.
            self._delete(TrainingPoint.step > newest)
            self._has_cut = True
        db.session.execute(insert(TrainingPoint), [self._row(*key) for key in changed])
        kept = newest - AVERAGED_STEPS
        self._sums = {key: total for key, total in self._sums.items() if key[1] >= kept}
        self._places = {key: place for key, place in self._places.items() if key[1] >= kept}

    def _delete(self, *which: ColumnElement[bool]) -> None:
        db.session.execute(
            delete(TrainingPoint).where(TrainingPoint.run_id == self._run_id, *which),
            execution_options={"synchronize_session": False},
        )

    def _row(self, metric: str, step: int) -> dict[str, object]:
        total, count = self._sums[metric, step]
        stage, epoch = self._places[metric, step]
        return {
            "run_id": self._run_id,
            "metric": metric[:LONGEST_NAME],
            "step": step,
            "value": total / count,
            "stage": stage[:200],
            "epoch": epoch,
        }
