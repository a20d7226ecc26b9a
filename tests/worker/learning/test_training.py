"""A training run: from its row to a model version, whatever interrupts it."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select, update

from ml.artifacts.card import Card
from ml.artifacts.folder import write_model
from ml.catalogue import IMAGENET_WEIGHTS
from ml.datasets.read import Dataset as LoadedDataset
from ml.errors import SettingError
from ml.evaluation.answers import write_answers
from ml.training.progress import Progress, TrainingStopped
from ml.training.run import OtherTraining, TrainConfig
from tests.ml.conftest import a_card, features_graph, head_graph
from tests.worker.conftest import install_model, wait_for
from tests.worker.learning.test_dataset_import import archive_of
from webapp.extensions import database_now, db
from webapp.models import (
    Comparison,
    Dataset,
    JobStatus,
    ModelVersion,
    TrainingRun,
    cancel,
    queue_again,
)
from webapp.storage import Storage, StorageError, storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.learning import training
from worker.learning.training_log import TrainingLog
from worker.predictors import model_folder
from worker.tasks import train_model

Say = Callable[[Progress], None]
Ask = Callable[[], bool]


def answers_of(
    probabilities: Sequence[float], dataset: str = "phantoms"
) -> list[dict[str, object]]:
    """Return out-of-fold answers for as many slices, the odd ones with hemorrhage, and as many
    patients.
    """
    return [
        {
            "level": level,
            "dataset": dataset,
            "filename": f"{number}.png" if level == "slice" else "",
            "label": number % 2,
            "patient": str(number),
            "group": str(number),
            "repeat": 0,
            "fold": 0,
            "probability": probability,
            "predicted": int(probability >= 0.5),
        }
        for level in ("slice", "patient")
        for number, probability in enumerate(probabilities)
    ]


MISTAKES = [{"filename": "1.png", "patient": "1", "label": 1, "probability": 0.2}]


class StubTraining:
    """Stands for `ml.training.run.train`: three steps with a checkpoint each, and a tiny model at
    the end.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.config: TrainConfig | None = None
        self.datasets: Sequence[LoadedDataset] = ()
        self.after_step: Callable[[int], None] = lambda step: None
        self.passed = True
        self.blocked_because = ""
        self.probabilities = [0.1, 0.9, 0.2, 0.8]

    def __call__(
        self,
        config: TrainConfig,
        datasets: Sequence[LoadedDataset],
        out_dir: Path,
        on_progress: Say,
        should_stop: Ask,
    ) -> Card:
        self.config, self.datasets = config, datasets
        checkpoint = out_dir / "checkpoint"
        checkpoint.mkdir(parents=True, exist_ok=True)
        for step in range(len(list(checkpoint.iterdir())), 3):
            if should_stop():
                raise TrainingStopped
            (checkpoint / f"fold-{step}.json").write_text("{}")
            self.steps.append(step)
            on_progress(
                Progress(f"fold {step + 1} of 3", (step + 1) / 4, 10.0, {"fold_auroc": 0.9})
            )
            self.after_step(step)
        check = {
            "largest_difference": 3e-4 if not self.passed else 0.0,
            "limit": 1e-4,
            "passed": self.passed,
        }
        card = a_card(export_check=check, blocked_because=self.blocked_because)
        for name in ("predictions.csv", "types.csv"):
            write_answers(out_dir / name, answers_of(self.probabilities))
        (out_dir / "mistakes").mkdir()
        (out_dir / "mistakes" / "mistake-00.png").write_bytes(b"a picture")
        (out_dir / "mistakes" / "mistakes.json").write_text(json.dumps(MISTAKES))
        shutil.rmtree(checkpoint)
        return write_model(
            out_dir / "model", card, {"features.onnx": features_graph(), "head.onnx": head_graph()}
        )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubTraining:
    """The training is stubbed, and progress is written as often as it is told."""
    stub = StubTraining()
    monkeypatch.setattr(training, "train", stub)
    monkeypatch.setattr(training, "WRITE_EVERY_S", 0.0)
    return stub


def launch(
    tmp_path: Path, initial_weights: str = "random", heads: int = 4, **settings: object
) -> str:
    """Queue a run on a data set of phantoms that has been imported; return its id."""
    labels = "filename,label,patient\n" + "".join(
        f"{seed}.png,{seed % 2},{seed}\n" for seed in range(heads)
    )
    dataset = Dataset(name="phantoms", archive_key="datasets/1.zip", status=JobStatus.DONE)
    storage.put(dataset.archive_key, archive_of(tmp_path, labels, heads))
    run = TrainingRun(
        architecture="alexnet_svm",
        settings=settings,
        initial_weights=initial_weights,
        seed=5,
        datasets=[dataset],
    )
    db.session.add(run)
    db.session.commit()
    return run.id


def the_run() -> TrainingRun:
    """Return the run as the database has it."""
    run = db.session.scalars(
        select(TrainingRun), execution_options={"populate_existing": True}
    ).one()
    db.session.commit()
    return run


def test_a_run_becomes_a_version(any_worker_app: Flask, stub: StubTraining, tmp_path: Path) -> None:
    run_id = launch(tmp_path, kernel="linear")
    train_model()
    run = the_run()
    assert (run.status, run.error, run.progress, run.stage) == ("done", None, 1.0, None)
    version = db.session.scalars(select(ModelVersion)).one()
    assert (version.run_id, version.architecture, version.reads, version.blocked_because) == (
        run_id,
        "alexnet_svm",
        "slice",
        None,
    )
    assert version.card["id"] == version.card_id
    assert sorted(storage.keys(version.storage_prefix)) == [
        f"models/{version.id}/{name}"
        for name in (
            "card.json",
            "features.onnx",
            "head.onnx",
            "mistake-00.png",
            "predictions.csv",
            "types.csv",
        )
    ]
    assert version.mistakes == MISTAKES and version.curves
    assert [one["threshold"] for one in version.curves["patient"]["thresholds"]] == [
        *(0.0, 0.1, 0.2, 0.8, 0.9, 1.0)
    ]
    assert sorted(path.name for path in model_folder(version).iterdir()) == [
        *("card.json", "features.onnx", "head.onnx")
    ]
    assert stub.config is not None
    assert (stub.config.seed, stub.config.settings, stub.config.init) == (
        5,
        {"kernel": "linear"},
        "random",
    )
    assert [opened.name for opened in stub.datasets] == ["phantoms"]
    assert storage.keys("checkpoints") == []
    assert list(heartbeat().folder.iterdir()) == []


def test_the_log_tells_stages_epochs_warnings_and_how_it_ended(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)

    def warn(step: int) -> None:
        logging.getLogger("ml.somewhere").warning("something\nis odd")
        if step == 1:
            raise SettingError("The settings do not fit.")

    stub.after_step = warn
    train_model()
    log = db.session.scalars(select(TrainingRun.log)).one() or ""
    lines = [line[20:] for line in log.splitlines()]
    assert lines[0].startswith("Started by worker ")
    assert "fold 2 of 3" in lines and "fold 1 of 3: Fold auroc 0.900" in " ".join(lines).replace(
        "AUROC of each fold", "Fold auroc"
    )
    assert "Warning: something is odd" in lines and "Checkpoint stored" in lines
    assert lines[-1] == "Failed: The settings do not fit."
    logbook = TrainingLog(log)
    for epoch, loss in ((1, 0.6), (1, 0.4), (2, 0.2)):
        logbook.add(Progress("fold 1 of 3", 0.1, None, {"loss": loss, "epoch": epoch}))
    assert logbook.text.splitlines()[-1].endswith("fold 1 of 3, epoch 1: Loss 0.5")
    for number in range(300):
        logbook.say(f"{number}")
    assert len(logbook.text.splitlines()) == 200


def test_a_version_that_shipped_gets_its_curves_from_its_answers(
    any_worker_app: Flask, tmp_path: Path
) -> None:
    write_answers(tmp_path / "answers.csv", answers_of([0.1, 0.9, 0.6, 0.8]))
    shipped, bare = install_model(), install_model(live=False)
    storage.put(f"{shipped.storage_prefix}/predictions.csv", tmp_path / "answers.csv")
    train_model()
    train_model()
    db.session.expire_all()
    assert bare.curves == {} and shipped.curves is not None
    assert (shipped.curves["slice"]["positive"], shipped.mistakes) == (2, None)


def test_a_version_knows_how_it_compares_with_what_is_live(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    live = install_model()
    storage_key = f"{live.storage_prefix}/predictions.csv"
    write_answers(tmp_path / "answers.csv", answers_of([0.9, 0.1, 0.2, 0.8]))
    storage.put(storage_key, tmp_path / "answers.csv")
    launch(tmp_path)
    train_model()
    made = db.session.scalars(select(ModelVersion).where(ModelVersion.run_id.is_not(None))).one()
    pair = db.session.scalars(select(Comparison)).one()
    assert (pair.version_id, pair.other_id, pair.status) == (made.id, live.id, JobStatus.DONE)
    assert pair.results is not None
    (result,) = pair.results
    assert (result["source"], result["slice"]["n"]) == ("out of fold", 4)
    assert result["slice"]["accuracy"]["value"] == 0.5


def test_progress_is_written_while_it_trains(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)
    seen: list[tuple[str | None, float, float | None, dict[str, float]]] = []

    def look(step: int) -> None:
        run = the_run()
        seen.append((run.stage, run.progress, run.eta_s, run.current_metrics))

    stub.after_step = look
    train_model()
    assert seen == [
        (f"fold {number} of 3", number / 4, 10.0, {"fold_auroc": 0.9}) for number in (1, 2, 3)
    ]


def test_progress_is_written_at_most_once_a_second(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    monkeypatch.setattr(training, "WRITE_EVERY_S", 3600.0)
    stages: list[str | None] = []
    stub.after_step = lambda step: stages.append(the_run().stage)
    train_model()
    assert stages == ["Downloading the data"] * 3


def test_a_worker_that_stops_hands_the_run_back_and_another_continues(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    stopping = False

    def stop_after_the_second(step: int) -> None:
        nonlocal stopping
        stopping = step == 1

    stub.after_step = stop_after_the_second
    monkeypatch.setattr(heartbeat(), "stopping", lambda: stopping)
    train_model()
    run = the_run()
    assert (run.status, run.attempts, run.lease_owner) == ("queued", 0, None)
    with zipfile.ZipFile(storage.open(f"checkpoints/{run.id}.zip")) as checkpoint:
        assert sorted(checkpoint.namelist()) == ["fold-0.json", "fold-1.json"]
    stopping = False
    stub.after_step = lambda step: None
    train_model()
    assert the_run().status == "done"
    assert stub.steps == [0, 1, 2]
    assert storage.keys("checkpoints") == []


def test_the_first_checkpoint_is_kept_at_once_and_the_next_ones_now_and_then(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    stored: list[str] = []
    real = Storage.put

    def note(self: Storage, key: str, content: bytes | Path) -> None:
        stored.append(key.split("/")[0])
        real(self, key, content)

    monkeypatch.setattr(Storage, "put", note)
    counts: list[bool] = []
    stub.after_step = lambda step: counts.append(the_run().death_counts)
    train_model()
    assert stored.count("checkpoints") == 1
    assert counts == [False, False, False]


def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_run(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    real = Storage.put

    def refuse(self: Storage, key: str, content: bytes | Path) -> None:
        if key.startswith("checkpoints/"):
            raise StorageError("The storage did not accept a file; please try again later.")
        real(self, key, content)

    monkeypatch.setattr(Storage, "put", refuse)
    counts: list[bool] = []
    stub.after_step = lambda step: counts.append(the_run().death_counts)
    train_model()
    assert the_run().status == "done"
    assert counts == [True, True, True]


def test_a_finished_training_waits_for_a_storage_that_is_away(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    real = Storage.put
    gone: list[str] = []

    def refuse(self: Storage, key: str, content: bytes | Path) -> None:
        if key.startswith("models/"):
            gone.append(key)
            raise StorageError("The storage did not accept a file; please try again later.")
        real(self, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", refuse)
        patch.setattr(Storage, "answers", lambda self: not gone)
        train_model()
    assert (the_run().status, the_run().attempts, the_run().error) == ("queued", 0, None)
    train_model()
    # From the last checkpoint that it took.
    assert (the_run().status, stub.steps) == ("done", [0, 1, 2, 1, 2])


def test_a_run_whose_model_the_storage_refuses_is_tried_again_for_an_hour(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launch(tmp_path)
    real = Storage.put

    def refuse(self: Storage, key: str, content: bytes | Path) -> None:
        if key.startswith("models/"):
            raise StorageError("The storage did not accept a file; please try again later.")
        real(self, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", refuse)
        train_model()
        assert (the_run().status, the_run().error, stub.steps) == ("queued", None, [0, 1, 2])
        train_model()  # Not yet.
        assert stub.steps == [0, 1, 2]
        hour = {"retry_at": database_now(-1), "refused_since": database_now(-3601)}
        db.session.execute(update(TrainingRun).values(**hour))
        db.session.commit()
        train_model()
        assert (the_run().status, the_run().error) == (
            "failed",
            "The storage did not accept a file; please try again later.",
        )
    queue_again(TrainingRun, TrainingRun.id == run_id)
    db.session.commit()
    train_model()
    assert the_run().status == "done"
    assert 0 not in stub.steps[3:], "each time from the checkpoint that was stored last"


def test_a_worker_whose_own_disk_is_full_hands_the_run_back_all_the_same(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    launch(tmp_path)
    heartbeat().stopping = lambda: bool(stub.steps)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "write", full)
        train_model()
    assert (the_run().status, the_run().attempts, the_run().error) == ("queued", 0, None)
    assert not storage.exists(f"checkpoints/{the_run().id}.zip")


def test_a_storage_that_is_away_is_reported_once_when_it_goes_and_once_when_it_is_back(
    worker_app: Flask,
    stub: StubTraining,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="worker.retries")
    launch(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "answers", lambda self: False)
        train_model()
        train_model()
    assert the_run().status == "queued"
    train_model()
    assert [
        record.getMessage() for record in caplog.records if record.name == "worker.retries"
    ] == [
        "the storage does not respond; nothing is claimed until it does",
        "the storage responds again",
    ]
    assert the_run().status == "done"


def test_a_run_that_was_lost_stops_and_writes_nothing(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)

    def presumed_dead(step: int) -> None:
        db.session.execute(update(TrainingRun).values(lease_expires_at=database_now(-1)))
        leases.reap(TrainingRun, "trained")
        db.session.commit()

    stub.after_step = presumed_dead
    train_model()
    assert (the_run().status, stub.steps) == ("queued", [0])
    assert db.session.scalars(select(ModelVersion)).all() == []


def test_a_run_that_is_cancelled_stops_at_its_next_step_and_can_be_launched_again(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    run_id = launch(tmp_path)

    def cancel_it(step: int) -> None:
        assert cancel(TrainingRun, TrainingRun.id == run_id)
        db.session.commit()

    stub.after_step = cancel_it
    train_model()
    assert (the_run().status, stub.steps) == ("cancelled", [0])
    assert (
        storage.keys("checkpoints") == [] and db.session.scalars(select(ModelVersion)).all() == []
    )

    assert queue_again(TrainingRun, TrainingRun.id == run_id)
    db.session.commit()
    stub.after_step = lambda step: None
    train_model()
    assert (the_run().status, stub.steps) == ("done", [0, 0, 1, 2])


def test_a_run_whose_checkpoint_is_of_an_earlier_version_begins_anew(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)

    def stop(step: int) -> None:
        raise TrainingStopped

    stub.after_step = stop
    train_model()
    assert the_run().status == "queued" and len(storage.keys("checkpoints")) == 1
    stub.after_step = lambda step: None

    def of_a_newer_version(
        config: TrainConfig,
        datasets: Sequence[LoadedDataset],
        out_dir: Path,
        on_progress: Say,
        should_stop: Ask,
    ) -> Card:
        if out_dir.exists():
            raise OtherTraining("It had other data.")
        return stub(config, datasets, out_dir, on_progress, should_stop)

    monkeypatch.setattr(training, "train", of_a_newer_version)
    train_model()
    assert (the_run().status, stub.steps) == ("done", [0, 0, 1, 2])
    assert storage.keys("checkpoints") == []


@pytest.mark.parametrize("ends_by", [TrainingStopped, SettingError])
def test_a_run_that_is_cancelled_unnoticed_leaves_no_checkpoint(
    any_worker_app: Flask,
    stub: StubTraining,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends_by: type[Exception],
) -> None:
    # No progress is written in which the worker would notice.
    monkeypatch.setattr(training, "WRITE_EVERY_S", 60.0)
    run_id = launch(tmp_path)

    def cancel_it(step: int) -> None:
        cancel(TrainingRun, TrainingRun.id == run_id)
        db.session.commit()
        storage.delete(f"checkpoints/{run_id}.zip")
        raise ends_by("Now.")

    stub.after_step = cancel_it
    train_model()
    assert (the_run().status, storage.keys("checkpoints")) == ("cancelled", [])


def test_a_run_that_was_lost_at_the_very_end_leaves_no_model(
    any_worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)

    def taken_over(step: int) -> None:
        if step == 2:
            db.session.execute(update(TrainingRun).values(lease_owner="another"))
            db.session.commit()

    stub.after_step = taken_over
    train_model()
    assert the_run().lease_owner == "another"
    assert db.session.scalars(select(ModelVersion)).all() == []
    assert storage.keys("models") == []


def test_a_model_whose_export_differs_may_not_be_promoted(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)
    stub.passed = False
    train_model()
    version = db.session.scalars(select(ModelVersion)).one()
    assert (
        version.blocked_because
        == "The exported model differs from the trained one by 0.0003; the limit is 0.0001."
    )


def test_a_model_whose_permuted_control_found_something_may_not_be_promoted(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)
    stub.blocked_because = "Something leaks from training into test."
    train_model()
    assert (
        db.session.scalars(select(ModelVersion)).one().blocked_because
        == "Something leaks from training into test."
    )


def test_an_expected_error_is_the_verdict(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)

    def refuse(step: int) -> None:
        raise SettingError("folds must lie between 2 and 10, not 11.")

    stub.after_step = refuse
    train_model()
    assert (the_run().status, the_run().error) == (
        "failed",
        "folds must lie between 2 and 10, not 11.",
    )
    assert storage.keys("checkpoints") == []
    assert list(heartbeat().folder.iterdir()) == []


def test_a_bug_is_a_verdict_too_and_is_raised(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)

    def fail(step: int) -> None:
        raise RuntimeError("a bug")

    stub.after_step = fail
    with pytest.raises(RuntimeError, match="a bug"):
        train_model()
    assert (
        the_run().error == "An unexpected error occurred during training; see the log for details."
    )


def test_initial_weights_are_found_by_name(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(worker_app.config["WEIGHTS_DIR"])
    folder.mkdir()
    for name in IMAGENET_WEIGHTS:
        (folder / name).touch()
    series = tmp_path / "starter_series"
    series.mkdir()
    monkeypatch.setattr(training, "STARTER_SERIES_DIR", series)
    version = install_model()
    cached = Path(worker_app.config["HEMOSCAN_HOME"]) / "cache" / "models" / version.card_id
    expected = {
        "starter": "starter",
        "starter-series": series,
        "random": "random",
        **{f"imagenet:{name}": folder / name for name in IMAGENET_WEIGHTS},
        f"version:{version.id}": cached,
    }
    run_id = launch(tmp_path)
    weights = {}
    for name in expected:
        db.session.execute(
            update(TrainingRun)
            .where(TrainingRun.id == run_id)
            .values(initial_weights=name, status=JobStatus.QUEUED)
        )
        db.session.execute(update(ModelVersion).values(run_id=None))
        db.session.commit()
        train_model()
        assert the_run().status == "done"
        assert stub.config is not None
        weights[name] = stub.config.init
    assert weights == expected


@pytest.mark.parametrize(
    "unknown",
    [
        "version:nobody",
        "bigger",
        "imagenet",
        "imagenet:../x.npz",
        "imagenet:alexnet_owt_imagenet_conv.npz",
    ],
)
def test_unknown_initial_weights_fail_with_a_sentence(
    worker_app: Flask, stub: StubTraining, tmp_path: Path, unknown: str
) -> None:
    launch(tmp_path, initial_weights=unknown)
    train_model()
    assert re.search("initial weights|ImageNet weights", the_run().error or "")


def test_imports_go_before_trainings_one_a_nudge(
    worker_app: Flask, stub: StubTraining, tmp_path: Path
) -> None:
    launch(tmp_path)
    db.session.execute(update(Dataset).values(status=JobStatus.QUEUED))
    db.session.commit()
    train_model()
    assert the_run().status == "queued"
    assert db.session.scalars(select(Dataset.status)).all() == ["done"]
    train_model()
    wait_for(lambda: the_run().status == "done")
