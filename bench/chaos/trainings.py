"""Trainings whose worker is killed after each new checkpoint; before them, an evaluation whose
worker is killed while it predicts; and the requests that an administrator makes about a data set
meanwhile.
"""

from __future__ import annotations

import signal
import threading
import time
import zipfile
from collections import defaultdict
from pathlib import Path

from sqlalchemy import select

from bench.chaos.stack import Stack
from tests.e2e.pictures import phantom_dataset
from webapp.extensions import db
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    JobStatus,
    TrainingRun,
    live_version,
    new_preview,
)

KILLS = 3
EVALUATION_KILLS = 2
"""A third would rightly end it."""
ARCHITECTURE = "cnn_gru"
FOLDS = 2
SETTINGS = {
    "folds": FOLDS,
    "epochs": 3,
    "units": 8,
    "projection": 8,
    "input_size": 160,
    "controls": "none",
}
SCORING = "Scoring"
"""The stage of an evaluation starts with this text once its data set has been read."""
MARK = "training.json"
"""The file that identifies the run of a checkpoint; by itself it is not a checkpoint."""

PHANTOMS = "phantoms"
PREVIEWS = 10


def explore(dataset_id: str) -> None:
    """Request how a data set would be split, and previews of its images; the caller commits."""
    db.session.add(
        DatasetAnalysis(
            dataset_id=dataset_id, kind=AnalysisKind.SPLIT, question=f"folds={FOLDS} seed=0"
        )
    )
    for number in range(PREVIEWS):
        what = {"dataset": dataset_id, "image": number}
        new_preview(what, {"kind": "picture", "level": 40, "width": 80})


class Trainings(threading.Thread):
    """Training runs on phantoms; `kills` counts the kills of each run's worker, `errors` lists
    errors of the test itself.
    """

    def __init__(self, stack: Stack, count: int, folder: Path) -> None:
        super().__init__(name="trainings", daemon=True)
        self.stack = stack
        self.count = count
        self.folder = folder
        self.kills: dict[str, int] = {}
        self.evaluation_kills = 0
        self.errors: list[str] = []
        self._seen: dict[str, frozenset[tuple[str, int]]] = defaultdict(frozenset)

    def import_phantoms(self) -> None:
        """Import the training data."""
        self.stack.flask(
            "import-dataset", str(phantom_dataset(self.folder)), "--name", PHANTOMS, "--wait"
        )

    def run(self) -> None:
        """Launch an evaluation and all runs, and kill the worker of each."""
        try:
            with self.stack.app.app_context():
                named = select(Dataset).where(Dataset.name == PHANTOMS)
                phantoms = db.session.scalars(named).one()
                runs = [
                    TrainingRun(
                        architecture=ARCHITECTURE,
                        settings=SETTINGS,
                        initial_weights="random",
                        seed=seed,
                        datasets=[phantoms],
                    )
                    for seed in range(self.count)
                ]
                live = live_version("slice")
                if live is None:
                    raise RuntimeError("no version is live")
                db.session.add_all([*runs, Evaluation(version_id=live.id, dataset_id=phantoms.id)])
                explore(phantoms.id)
                db.session.commit()
                nudge(TRAIN_MODEL)
                self.kills = {run.id: 0 for run in runs}
            while self._follow():
                time.sleep(0.05)
        except Exception as err:  # noqa: BLE001 - reported at the end, like every other.
            self.errors.append(f"trainings: {type(err).__name__}: {err}")

    def _follow(self) -> bool:
        """Kill the worker if there is a new checkpoint; return False once all runs have ended."""
        self._kill_evaluation()
        look = select(TrainingRun.id, TrainingRun.status, TrainingRun.death_counts)
        runs = self.stack.ask(lambda: db.session.execute(look).all())
        for run_id, status, death_counts in runs or ():
            # The row shows whether the current worker stored a new checkpoint: only then does its
            # death not count against the run.
            if status == JobStatus.RUNNING and not death_counts and self.kills[run_id] < KILLS:
                reached = self._checkpoint_of(run_id)
                if reached - self._seen[run_id]:
                    self._seen[run_id] = reached
                    self.stack.programs["worker-train"].send(signal.SIGKILL, "all")
                    self.kills[run_id] += 1
        return runs is None or not all(status.is_final for _, status, _ in runs)

    def _kill_evaluation(self) -> None:
        """Kill the worker of the evaluation once it predicts, unless it has been killed often
        enough.
        """
        if self.evaluation_kills >= EVALUATION_KILLS:
            return
        scoring = select(Evaluation.id).where(
            Evaluation.status == JobStatus.RUNNING,
            Evaluation.attempts == self.evaluation_kills,
            Evaluation.stage.startswith(SCORING),
        )
        if self.stack.ask(lambda: db.session.scalar(scoring)):
            self.stack.programs["worker-train"].send(signal.SIGKILL, "all")
            self.evaluation_kills += 1

    def _checkpoint_of(self, run_id: str) -> frozenset[tuple[str, int]]:
        """Return the files of the stored checkpoint; none if there is none or the storage is
        unavailable.
        """
        try:
            with zipfile.ZipFile(self.stack.files / "checkpoints" / f"{run_id}.zip") as stored:
                return frozenset(
                    (entry.filename, entry.CRC)
                    for entry in stored.infolist()
                    if entry.filename != MARK
                )
        except OSError:
            return frozenset()
