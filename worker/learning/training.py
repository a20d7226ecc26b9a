"""Turns a training run into a model version; interrupted runs continue from their checkpoint, on
any machine. A run that is a calibration fits an earlier version to a data set of this site.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from flask import current_app
from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import selectinload, undefer

from ml.artifacts.card import Card
from ml.artifacts.folder import read_card
from ml.catalogue import IMAGENET_WEIGHTS, STARTER_SERIES_DIR
from ml.errors import ArtifactError, DatasetError, SettingError
from ml.inference.predictor import Predictor
from ml.training.progress import Progress, TrainingStopped
from ml.training.run import OtherTraining, TrainConfig, train
from ml.validation.site_calibration import calibrate
from webapp.extensions import db, utc_now
from webapp.models import (
    OWN_THRESHOLDS,
    Comparison,
    JobStatus,
    ModelVersion,
    TrainingRun,
    new_id,
)
from webapp.storage import StorageError, StorageUnavailable, storage
from worker import leases
from worker.canary import answer_of
from worker.heartbeat import heartbeat
from worker.learning.checkpoints import Checkpoint
from worker.learning.comparison import compare_with_earlier
from worker.learning.dataset_import import fetch_dataset
from worker.learning.training_curves import Curves
from worker.learning.training_log import TrainingLog
from worker.learning.version_answers import answers_of_training
from worker.leases import LeaseLost
from worker.predictors import ANSWERS, model_folder
from worker.retries import in_transaction, retry_storage
from worker.scan_files import is_passing

log = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0


def train_next_run() -> bool:
    """Claim a queued run and carry it out, or return it to the queue if the worker stops; return
    False if none was queued.
    """
    mine = heartbeat()

    def claim() -> TrainingRun | None:
        claimed = leases.claim(TrainingRun, mine.owner)
        if not claimed:
            return None
        return db.session.scalar(
            select(TrainingRun)
            .where(TrainingRun.id == claimed[0].id)
            .options(selectinload(TrainingRun.datasets), undefer(TrainingRun.log))
        )

    run = in_transaction(claim)
    if run is None:
        return False
    with mine.holding(TrainingRun, [run.id]), mine.work_folder() as folder:
        Training(run, folder).carry_through()
    return True


class Training:
    """A claimed run while this process works on it.

    The checkpoint in storage, never a leftover local folder, determines how far the run has got,
    because another machine may have continued it in the meantime.
    """

    def __init__(self, run: TrainingRun, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.out_dir = folder / "out"
        self.checkpoint = Checkpoint(run.id, self.out_dir / "checkpoint", folder)
        self.is_lost = False
        self._is_trained = False
        self._base: ModelVersion | None = None  # The version to calibrate.
        self._owner = heartbeat().owner
        self._written_at = time.monotonic()
        self._progress: dict[str, Any] = {"stage": "Downloading the data"}
        self._curves = Curves(run.id)
        self._log = TrainingLog(run.log)
        self._answers: dict[str, Any] = {}  # The version's columns about its predictions.

    def carry_through(self) -> None:
        """Train; the row ends as done or failed, or returns to the queue with its checkpoint stored
        if the storage is available.
        """
        self._log.say(f"Started by worker {self._owner}")
        with self._log.hearing_warnings():
            self._carry_through()

    def _carry_through(self) -> None:
        try:
            card = self._calibrate() if self.run.is_calibration else self._train()
            self._is_trained = True
            version_id = self._store_model(card)
            log.info("run=%s done version=%s", self.run.id, version_id)
        except LeaseLost:
            self._let_go()
        except (TrainingStopped, StorageUnavailable):
            if self.is_lost:
                self._let_go()
                return
            self._log.say("The worker was asked to stop; the run will continue from its checkpoint")
            self._keep_checkpoint()
            self._write()
            if in_transaction(lambda: leases.hand_back(TrainingRun, self._owner, [self.run.id])):
                log.info("run=%s returned to the queue", self.run.id)
            else:
                self._let_go()
        except (DatasetError, SettingError, ArtifactError) as err:
            self._fail(str(err))
        except StorageError as err:
            if is_passing(err):
                self._put_off(str(err))
            else:
                self._fail(str(err), keeps_checkpoint=self._is_trained)
        except Exception:
            log.error("run=%s failed unexpectedly", self.run.id)
            self._fail("An unexpected error occurred during training; see the log for details.")
            raise

    def _let_go(self) -> None:
        """Abandon a run that this worker no longer holds; delete its checkpoint if it was
        canceled.
        """
        status = in_transaction(
            lambda: db.session.scalar(
                select(TrainingRun.status).where(TrainingRun.id == self.run.id)
            )
        )
        if status == JobStatus.CANCELLED:
            self.checkpoint.discard()
            log.info("run=%s was cancelled", self.run.id)
        else:
            log.warning("run=%s was lost to another worker", self.run.id)

    def _train(self) -> Card:
        run = self.run
        self._write()
        init = weights_named(run.initial_weights)
        # The pool needs both classes, not each data set in it.
        opened = [
            fetch_dataset(dataset, self.folder, self._on_part, needs_both_classes=False)
            for dataset in run.datasets
        ]
        self.checkpoint.fetch()
        config = TrainConfig(
            architecture=run.architecture,
            settings=run.settings,
            seed=run.seed,
            init=init,
            command=(
                f"Training run {run.id}, launched in the browser from the initial weights"
                f" {run.initial_weights!r}."
            ),
        )
        try:
            return train(config, opened, self.out_dir, self._on_progress, self._should_stop)
        except OtherTraining:
            # The settings and data of a run never change, but a newer version of this software may
            # interpret them differently.
            log.warning("run=%s starts over: its checkpoint is from an earlier version", run.id)
            shutil.rmtree(self.out_dir)
            self.checkpoint.forget()
            return train(config, opened, self.out_dir, self._on_progress, self._should_stop)

    def _calibrate(self) -> Card:
        """Calibrate the version that the initial weights name."""
        self._write()
        self._base = self._calibrated_version()
        (dataset,) = self.run.datasets
        opened = fetch_dataset(dataset, self.folder, self._on_part)
        self._progress["stage"] = "Scoring the confirmed scans"
        calibrate(model_folder(self._base), opened, self.out_dir, self._on_scored)
        return read_card(self.out_dir / "model")

    def _calibrated_version(self) -> ModelVersion:
        version_id = self.run.initial_weights.partition(":")[2]
        version = in_transaction(lambda: db.session.get(ModelVersion, version_id))
        if version is None:
            raise SettingError("The version to be calibrated no longer exists.")
        return version

    def _on_scored(self, done: int, total: int) -> None:
        self._progress["progress"] = done / max(total, 1)
        if self._should_stop():
            raise TrainingStopped

    def _on_part(self, what: str, done: int, total: int) -> None:
        self._progress["stage"] = f"{what} {done} of {total}"
        if self._should_stop():
            raise TrainingStopped

    def _on_progress(self, progress: Progress) -> None:
        self._curves.add(progress)
        self._log.add(progress)
        self._progress = {
            "stage": progress.stage,
            "progress": progress.fraction,
            "eta_s": progress.eta_s,
            "current_metrics": (
                {name: float(value) for name, value in progress.metrics.items()}
                or self._progress.get("current_metrics", {})
            ),
        }
        self._write_now_and_then()
        if self.checkpoint.is_due(current_app.config["CHECKPOINT_S"]):
            self._keep_checkpoint()

    def _should_stop(self) -> bool:
        self._write_now_and_then()
        return self.is_lost or heartbeat().stopping()

    def _write_now_and_then(self) -> None:
        if time.monotonic() - self._written_at >= WRITE_EVERY_S:
            self._write()

    def _write(self) -> None:
        """Write the progress; a lost lease ends the training, an unavailable database does not."""
        self._written_at = time.monotonic()
        self._write_columns(**self._progress)

    def _write_columns(self, **columns: Any) -> None:
        if self._log.is_new:
            columns["log"] = self._log.text
        try:
            held = leases.write(TrainingRun, self._owner, [self.run.id], **columns)
            if held:
                self._curves.write()
            db.session.commit()
            self.is_lost = not held
            self._log.is_new = False
        except SQLAlchemyError as err:
            db.session.rollback()
            log.warning("run=%s progress could not be written: %s", self.run.id, type(err).__name__)

    def _keep_checkpoint(self) -> None:
        if self.checkpoint.store():
            self._log.say("Checkpoint stored")
            # A death after a new checkpoint does not count against the run.
            self._write_columns(death_counts=False, refused_since=None)

    def _store_model(self, card: Card) -> str:
        """Store the model folder with its predictions, compare it with earlier versions, then write
        the version and finish the run in one transaction.

        Raises:
            LeaseLost: another worker has the run; the files of this model were deleted.
        """
        version_id = new_id()
        prefix = f"models/{version_id}"
        self._progress["stage"] = "Comparing with earlier versions"
        self._log.say("Comparing with earlier versions")
        self._write()
        is_trained = not self.run.is_calibration  # A calibration has no predictions of its own.
        comparisons = compare_with_earlier(self.out_dir, self.folder) if is_trained else {}
        canary = answer_of(Predictor(self.out_dir / "model"))
        self._answers = answers_of_training(self.out_dir)
        try:
            answers = [path for name in ANSWERS if (path := self.out_dir / name).is_file()]
            pictures = sorted((self.out_dir / "mistakes").glob("*.png"))
            for path in [*sorted((self.out_dir / "model").iterdir()), *answers, *pictures]:
                retry_storage(lambda path=path: storage.put(f"{prefix}/{path.name}", path))  # type: ignore[misc]
            in_transaction(
                lambda: self._write_version(card, comparisons, canary, version_id, prefix)
            )
        except (LeaseLost, StorageError):
            storage.discard(prefix)
            raise
        self.checkpoint.discard()
        return version_id

    def _write_version(
        self,
        card: Card,
        comparisons: dict[str, list[dict[str, Any]]],
        canary: float,
        version_id: str,
        prefix: str,
    ) -> None:
        if db.session.get(ModelVersion, version_id) is not None:
            return  # The commit succeeded, but its confirmation was lost.
        check = card.export_check
        blocked_because = card.blocked_because or None
        if not check.passed:
            blocked_because = (
                f"The exported model differs from the trained one by {check.largest_difference};"
                f" the limit is {check.limit}."
            )
        done = {"eta_s": None, "log": self._log.text}
        if not leases.finish(TrainingRun, self._owner, [self.run.id], **done):
            raise LeaseLost
        db.session.execute(
            insert(ModelVersion).values(
                **self._point(),
                **self._answers,
                id=version_id,
                run_id=self.run.id,
                card_id=card.id,
                architecture=card.architecture,
                reads=card.reads,
                storage_prefix=prefix,
                card=json.loads(card.to_json()),
                blocked_because=blocked_because,
                canary=canary,
            )
        )
        for other_id, results in comparisons.items():
            db.session.add(
                Comparison(
                    version_id=version_id,
                    other_id=other_id,
                    results=results,
                    status=JobStatus.DONE,
                    progress=1.0,
                    finished_at=utc_now(),
                )
            )

    def _point(self) -> dict[str, Any]:
        """Return the columns of the operating point of a calibrated version: the thresholds chosen
        for the original are probabilities and remain valid.
        """
        if self._base is None or self._base.point is None:
            return {}
        return {
            "point": OWN_THRESHOLDS,
            "slice_threshold": self._base.slice_threshold,
            "scan_threshold": self._base.scan_threshold,
        }

    def _put_off(self, sentence: str) -> None:
        """Queue a run again after an error of the storage; it resumes from the last stored
        checkpoint. After an hour of errors it fails; a manual retry resumes from there, too.
        """
        self.checkpoint.store()
        if not in_transaction(
            lambda: leases.retry_after_storage_error(
                TrainingRun, self._owner, {self.run.id: sentence}
            )
        ):
            self._let_go()

    def _fail(self, sentence: str, keeps_checkpoint: bool = False) -> None:
        self._log.say(f"Failed: {sentence}")
        self._write()
        if not in_transaction(
            lambda: leases.fail(TrainingRun, self._owner, {self.run.id: sentence})
        ):
            self._let_go()
        elif not keeps_checkpoint:
            self.checkpoint.discard()


def weights_named(name: str) -> Path | Literal["random", "starter"]:
    """Return the initial weights named by a form.

    Raises:
        SettingError: there are none with that name on this worker.
    """
    match name.partition(":"):
        case ("starter", "", _):
            return "starter"
        case ("random", "", _):
            return "random"
        case ("starter-series", "", _) if STARTER_SERIES_DIR.is_dir():
            return STARTER_SERIES_DIR
        case ("imagenet", ":", file) if file in IMAGENET_WEIGHTS:
            weights = Path(current_app.config["WEIGHTS_DIR"]) / file
            if not weights.is_file():
                raise SettingError(
                    f"The ImageNet weights {file} are not in the WEIGHTS_DIR of this worker."
                )
            return weights
        case ("version", ":", version_id):
            version = in_transaction(lambda: db.session.get(ModelVersion, version_id))
            if version is not None:
                return model_folder(version)
    raise SettingError(f"Unknown initial weights {name!r}.")
