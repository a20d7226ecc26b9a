"""A training run's checkpoint in the storage, from which any machine can continue the run."""

from __future__ import annotations

import logging
import time
import zipfile
from pathlib import Path

from webapp.storage import MissingFile, StorageError, storage
from worker.retries import NO_ROOM, retry_storage

log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one run, and the state of it that this process knows to be stored.

    Args:
        run_id: the id of the run.
        folder: where the training writes its checkpoint.
        work_folder: a temporary folder for the archive.
        key: its storage key, if it is not that of a training run.
    """

    def __init__(self, run_id: str, folder: Path, work_folder: Path, key: str = "") -> None:
        self.key = key or f"checkpoints/{run_id}.zip"
        self._run_id = run_id
        self._folder = folder
        self._packed = work_folder / "checkpoint.zip"
        self.forget()

    def forget(self) -> None:
        """Assume that nothing is stored, so that the next checkpoint is due immediately."""
        self._stored: frozenset[tuple[str, int, int]] = frozenset()
        self._stored_at = float("-inf")

    def is_due(self, every_s: float) -> bool:
        """Return whether the last checkpoint was stored at least `every_s` seconds ago."""
        return time.monotonic() - self._stored_at >= every_s

    def store(self) -> bool:
        """Store the checkpoint if it has changed; return whether it was stored. Errors are logged
        and do not stop the training.
        """
        files = [path for path in self._files() if not path.name.startswith(".")]
        reached = _state_of(files)
        if not files or reached == self._stored:
            return False
        try:
            with zipfile.ZipFile(self._packed, "w", zipfile.ZIP_STORED) as archive:
                for path in files:
                    archive.write(path, path.relative_to(self._folder))
            storage.put(self.key, self._packed)
        # The local disk may be full; the run can still be returned to the queue.
        except (OSError, StorageError) as err:
            log.warning(
                "run=%s checkpoint could not be stored: %s",
                self._run_id,
                err if isinstance(err, StorageError) else NO_ROOM,
            )
            return False
        finally:
            self._packed.unlink(missing_ok=True)
        self._stored, self._stored_at = reached, time.monotonic()
        return True

    def fetch(self) -> None:
        """Download and unpack the stored checkpoint, if there is one.

        Raises:
            StorageError: it cannot be downloaded.
        """
        try:
            retry_storage(lambda: storage.fetch(self.key, self._packed))
        except MissingFile:
            return
        with zipfile.ZipFile(self._packed) as archive:
            archive.extractall(self._folder)
        self._packed.unlink()
        self._stored, self._stored_at = _state_of(self._files()), time.monotonic()
        log.info("run=%s continues from its checkpoint", self._run_id)

    def discard(self) -> None:
        """Delete the stored checkpoint of a run that has ended."""
        storage.discard(self.key)

    def _files(self) -> list[Path]:
        return [path for path in self._folder.rglob("*") if path.is_file()]


def _state_of(files: list[Path]) -> frozenset[tuple[str, int, int]]:
    return frozenset((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
