"""The heartbeat of a worker process: it keeps its row, its leases and its folder alive."""

from __future__ import annotations

import logging
import mmap
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flask import Flask, current_app
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from webapp import logs
from webapp.extensions import database_now, db
from webapp.models import Leased, Worker, new_id
from worker import leases

log = logging.getLogger(__name__)

ABANDONED_S = 600
"""A work folder that has not been touched for this long was abandoned."""
DOWNLOAD_ABANDONED_S = 24 * 3600
"""The same for the download of a model, whose folder is not touched while a file arrives."""


class Heartbeat:
    """This process as the database knows it; `owner` is written into its leases.

    Created in the pool's child, never in the Celery parent, because it has a thread and a database
    connection.
    """

    def __init__(
        self,
        app: Flask,
        queue: str,
        stopping: Callable[[], bool] = lambda: False,
        storage_away: mmap.mmap | None = None,
    ) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:50]
        self.queue = queue
        self.host = host
        self.owner = f"{queue}-{host}-{os.getpid()}-{new_id()[:8]}"
        self.stopping = stopping
        """True once the worker was asked to stop: finish the batch or return it to the queue, then
        exit.
        """
        self.last_read_for = ""
        """The user whose scan was analyzed last: other users are next if not all claimed scans fit
        into a batch.
        """
        self.last_drawn_for = ""
        """The user whose heat map was drawn last: other users are next."""
        self.last_reported_for = ""
        """The user whose report was generated last: other users are next."""
        self.environment_id: str | None = None
        """The id of this process's stored environment, set on first use (`worker.made_with`)."""
        self._storage_away = storage_away or mmap.mmap(-1, 1)
        self.alarm: str | None = None
        """Why this worker cannot analyze scans, as a sentence; written by the next heartbeat."""
        self.folder = work_folder_of(app) / self.owner
        self._app = app
        self._held: dict[type[Leased], Collection[str]] = {}
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @property
    def misses_storage(self) -> bool:
        """True while the storage is known to be unavailable: nothing is claimed until it responds
        (`worker.retries`).
        """
        return self._storage_away[0] != 0

    @misses_storage.setter
    def misses_storage(self, misses: bool) -> None:
        self._storage_away[0] = int(misses)

    def start(self) -> None:
        """Register this worker in the database, and start the heartbeat."""
        self.beat()
        self._heart.start()

    def stop(self) -> None:
        """Stop the heartbeat, and remove row and folder."""
        self._over.set()
        if self._heart.is_alive():
            self._heart.join(timeout=2)
        shutil.rmtree(self.folder, ignore_errors=True)
        with self._app.app_context():
            try:
                db.session.execute(delete(Worker).where(Worker.id == self.owner))
                db.session.commit()
            except SQLAlchemyError as err:
                log.warning("worker=%s could not sign off: %s", self.owner, type(err).__name__)

    def beat(self) -> None:
        """Record that this process is alive, and renew its leases; if the database is unavailable,
        the next beat tries again.
        """
        # Recorded in the folder itself: a worker that started while the database was unavailable
        # works without a row.
        with suppress(OSError):  # no work folder yet
            os.utime(self.folder)
        with self._app.app_context():
            try:
                alive = db.session.scalar(
                    update(Worker)
                    .where(Worker.id == self.owner)
                    .values(seen_at=database_now(), alarm=self.alarm)
                    .returning(Worker.id),
                    execution_options={"synchronize_session": False},
                )
                if alive is None:
                    now = database_now()
                    db.session.add(
                        Worker(
                            id=self.owner,
                            queue=self.queue,
                            host=self.host,
                            pid=os.getpid(),
                            started_at=now,
                            seen_at=now,
                            alarm=self.alarm,
                        )
                    )
                for table, ids in tuple(self._held.items()):
                    leases.renew(table, self.owner, ids)
                db.session.commit()
            except SQLAlchemyError as err:
                db.session.rollback()
                log.warning("worker=%s heartbeat failed: %s", self.owner, type(err).__name__)

    @contextmanager
    def holding(self, table: type[Leased], ids: Collection[str]) -> Iterator[None]:
        """Renew the leases of these rows within the context, in which log records carry their
        ids.

        Threads may hold rows of different tables at the same time. After the context the leases are
        no longer renewed, so a row without a result returns to the queue.
        """
        self._held[table] = ids
        try:
            with logs.about(**{logs.ids_field(table): ids}):
                yield
        finally:
            self._held.pop(table, None)

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A fresh folder of this process, removed afterwards; if the process is killed, a sweep
        removes it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)

    def _beat_on(self) -> None:
        while not self._over.wait(self._app.config["HEARTBEAT_S"]):
            self.beat()


def has_died(owner: str) -> bool:
    """Return whether the process of a `Heartbeat.owner` on this machine has exited; False if its
    process id is in use again.
    """
    try:
        os.kill(int(owner.rsplit("-", 2)[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def heartbeat() -> Heartbeat:
    """Return the heartbeat of this process."""
    mine: Heartbeat = current_app.extensions["heartbeat"]
    return mine


def work_folder_of(app: Flask) -> Path:
    """Return the folder with the work folders of this machine's workers."""
    return Path(app.config["HEMOSCAN_HOME"]) / "work"


def models_of(app: Flask) -> Path:
    """Return the folder with this machine's copies of models. Those that are being downloaded have
    names that start with a dot.
    """
    return Path(app.config["HEMOSCAN_HOME"]) / "cache" / "models"


def remove_abandoned_folders() -> None:
    """Remove what killed workers left on this machine: unfinished downloads of models, and work
    folders for which neither the folder nor the database shows a recent sign of life.

    Either alone can mislead: a worker that started while the database was unavailable has no row
    yet, and this machine's clock may have been changed.
    """
    for path in models_of(current_app).glob(".*"):
        if _age_s(path) > DOWNLOAD_ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)
    root = work_folder_of(current_app)
    silent = (
        [path for path in root.iterdir() if _age_s(path) > ABANDONED_S] if root.is_dir() else []
    )
    if not silent:
        return
    alive = set(
        db.session.scalars(select(Worker.id).where(Worker.seen_at > database_now(-ABANDONED_S)))
    )
    db.session.commit()
    for path in silent:
        if path.name not in alive:
            shutil.rmtree(path, ignore_errors=True)


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:  # its worker exited, or another sweep removed it
        return 0.0
