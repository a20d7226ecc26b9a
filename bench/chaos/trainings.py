"""Trainings whose worker is killed each time that a new checkpoint is stored."""

from __future__ import annotations

import signal
import threading
import time
import zipfile
from pathlib import Path

from sqlalchemy import select

from bench.chaos.stack import Stack
from tests.e2e.pictures import phantom_dataset
from webapp.extensions import db
from webapp.jobs import TRAIN_MODEL, nudge
from webapp.models import Dataset, JobStatus, TrainingRun

KILLS = 3
ARCHITECTURE = "cnn_gru"
SETTINGS = {"folds": 2, "epochs": 3, "units": 8, "projection": 8, "input_size": 160, "controls": "none"}
MARK = "training.json"
"""Says whose checkpoint it is; alone it is none."""


class Trainings(threading.Thread):
    """So many runs on phantoms; `kills` says how often the worker of each was killed, `errors` what went wrong in here."""

    def __init__(self, stack: Stack, count: int, folder: Path) -> None:
        super().__init__(name="trainings", daemon=True)
        self.stack = stack
        self.count = count
        self.folder = folder
        self.kills: dict[str, int] = {}
        self.errors: list[str] = []

    def import_phantoms(self) -> None:
        """Import the data set that all train on."""
        self.stack.flask("import-dataset", str(phantom_dataset(self.folder)), "--name", "phantoms", "--wait")

    def run(self) -> None:
        """Launch all runs, and kill the worker of each three times."""
        try:
            with self.stack.app.app_context():
                phantoms = db.session.scalars(select(Dataset)).one()
                runs = [
                    TrainingRun(architecture=ARCHITECTURE, settings=SETTINGS, initial_weights="random", seed=seed, datasets=[phantoms])
                    for seed in range(self.count)
                ]
                db.session.add_all(runs)
                db.session.commit()
                nudge(TRAIN_MODEL)
                self.kills = {run.id: 0 for run in runs}
            for run_id in self.kills:
                self._follow(run_id)
        except Exception as err:  # noqa: BLE001 - told at the end, like every other.
            self.errors.append(f"trainings: {type(err).__name__}: {err}")

    def _follow(self, run_id: str) -> None:
        seen: frozenset[tuple[str, int]] = frozenset()
        # The row says whether the worker that has it now stored a new checkpoint: only then its death does not count.
        look = select(TrainingRun.status, TrainingRun.death_counts).where(TrainingRun.id == run_id)
        while True:
            row = self.stack.ask(lambda: db.session.execute(look).one())
            if row is not None and row.status.is_final:
                return
            if row is not None and row.status == JobStatus.RUNNING and not row.death_counts and self.kills[run_id] < KILLS:
                reached = self._checkpoint_of(run_id)
                if reached - seen:
                    seen = reached
                    self.stack.programs["worker-train"].send(signal.SIGKILL, "all")
                    self.kills[run_id] += 1
            time.sleep(0.05)

    def _checkpoint_of(self, run_id: str) -> frozenset[tuple[str, int]]:
        """Return the files of the stored checkpoint; none where there is none or the storage is away."""
        try:
            with zipfile.ZipFile(self.stack.files / "checkpoints" / f"{run_id}.zip") as stored:
                return frozenset((entry.filename, entry.CRC) for entry in stored.infolist() if entry.filename != MARK)
        except OSError:
            return frozenset()
