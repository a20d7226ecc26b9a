"""Two batches of scans at one time in one predict worker."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from tests.worker.conftest import install_model, picture, submit, wait_for
from webapp.extensions import db
from webapp.models import Scan
from worker import prediction, second_thread, tasks
from worker.heartbeat import heartbeat

WAIT_S = 20


@pytest.fixture
def two_threads(worker_app: Flask, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """A worker that uses two threads, each of which claims one or two scans at a time."""
    worker_app.config.update(PREDICT_THREADS=2, PREDICT_BATCH=2)
    monkeypatch.setattr(second_thread, "LOOK_S", 0.01)
    install_model()
    return worker_app


def states(ids: Sequence[str]) -> list[tuple[str, int]]:
    """Return status and attempts of these scans."""
    scans = [db.session.get_one(Scan, scan_id, populate_existing=True) for scan_id in ids]
    found = [(str(scan.status), scan.attempts) for scan in scans]
    db.session.rollback()  # so that other threads may write
    return found


def answer_in_context(app: Flask) -> bool:
    """Answer a batch as another thread does."""
    with app.app_context():
        return prediction.answer_next_scans()


def test_a_batch_is_read_while_another_is_computed_and_never_two_are_computed(
    two_threads: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = submit(*[picture(200)] * 6)
    readers: dict[int, int] = {}
    both_read, computing, most = threading.Event(), [], []
    real_read, real_score = prediction.read, prediction.score

    def read(scan: Scan) -> prediction.Outcome:
        readers[threading.get_ident()] = readers.get(threading.get_ident(), 0) + 1
        if len(readers) == 2:
            both_read.set()
        return real_read(scan)

    def score(*given: Any) -> None:
        computing.append(1)
        most.append(len(computing))
        assert both_read.wait(WAIT_S)  # by the other thread, while this one computes
        real_score(*given)
        computing.pop()

    monkeypatch.setattr(prediction, "read", read)
    monkeypatch.setattr(prediction, "score", score)
    tasks.predict_scans()
    assert states(ids) == [("done", 0)] * 6
    assert sum(readers.values()) == 6 and len(readers) == 2
    assert set(most) == {1}


def test_a_scan_whose_batch_died_is_never_beside_others(two_threads: Flask) -> None:
    (died,) = submit(picture(200))
    db.session.execute(update(Scan).values(attempts=1))
    db.session.commit()
    with heartbeat().holding(Scan, ["another"]):
        assert not prediction.answer_next_scans()
        assert states([died]) == [("queued", 1)]
    (other,) = submit(picture(200))
    with ThreadPoolExecutor(2) as threads:
        with prediction._computing:
            first = threads.submit(answer_in_context, two_threads)
            wait_for(lambda: states([died]) == [("running", 1)])
            second = threads.submit(answer_in_context, two_threads)
            with pytest.raises(TimeoutError):
                second.result(0.3)
            assert states([died, other]) == [("running", 1), ("queued", 0)]
        assert first.result(WAIT_S) and second.result(WAIT_S)
    assert states([died, other]) == [("done", 1), ("done", 0)]


class ObservedLock:
    """A lock that tells when somebody finds it locked."""

    def __init__(self) -> None:
        self._lock, self.was_found_locked = threading.Lock(), threading.Event()

    def locked(self) -> bool:
        if is_locked := self._lock.locked():
            self.was_found_locked.set()
        return is_locked

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_batch_that_waits_to_be_computed_gives_way_to_an_urgent_scan(
    two_threads: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing = ObservedLock()
    monkeypatch.setattr(prediction, "_computing", computing)
    early, later = submit(picture(200), picture(200))
    with ThreadPoolExecutor(1) as thread:
        with computing:
            answering = thread.submit(answer_in_context, two_threads)
            assert computing.was_found_locked.wait(WAIT_S)
            (urgent,) = submit(picture(200))
            db.session.execute(update(Scan).where(Scan.id == urgent).values(stat=True))
            db.session.commit()
        assert answering.result(WAIT_S)
    assert states([early, later, urgent]) == [("queued", 0)] * 3
    assert prediction.answer_next_scans()
    assert states([urgent]) == [("done", 0)]
