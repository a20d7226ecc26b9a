"""Watches a folder that a scanner writes to: files that no longer change are submitted, each
once.

Each batch and its key are recorded before it is sent, and its outcome afterwards. A client that
dies in between sends the same batch again under the same key, by which the service recognizes it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self
from uuid import uuid4

from hemoscan_client.errors import ApiError, HemoscanError, Unreachable
from hemoscan_client.operations import Choices
from hemoscan_client.results import Job

UNFINISHED = (".part", ".tmp", ".partial", ".crdownload", ".filepart")
"""Suffixes of files that are still being written."""
NO_RIGHT = (401, 403)
FOR_GOOD = (400, 413, 415, 422)
"""Response statuses to a submission that would be refused again."""
SENDING, SENT, REFUSED = "sending", "sent", "refused"
TABLES = """
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, scans TEXT, sentence TEXT
);
CREATE TABLE IF NOT EXISTS file (
    path TEXT NOT NULL, size INTEGER NOT NULL, changed INTEGER NOT NULL,
    batch_id INTEGER NOT NULL REFERENCES batch (id), PRIMARY KEY (path, size, changed)
);
"""


class Submitting(Protocol):
    """The part of a client that is used here."""

    def submit(
        self,
        paths: Sequence[str | os.PathLike[str]],
        choices: Choices,
        *,
        key: str | None,
        root: Path | None,
    ) -> list[Job]:
        """Submit files."""


@dataclass(frozen=True, order=True)
class Seen:
    """A file in the folder; `path` is relative to the folder."""

    path: str
    size: int
    changed: int

    @property
    def unit(self) -> str:
        """The unit of submission: a subfolder, or "" for all files outside subfolders."""
        first, _, rest = self.path.partition("/")
        return first if rest else ""


@dataclass(frozen=True)
class Batch:
    """Files that are submitted together; `name` identifies them for people."""

    id: int
    key: str
    paths: Sequence[str]

    @property
    def name(self) -> str:
        """The folder that they are in, or the files themselves."""
        folder, _, rest = self.paths[0].partition("/")
        return folder if rest else ", ".join(self.paths[:3]) + ("…" if self.paths[3:] else "")


class Memory:
    """What was submitted, in an SQLite file that only one watcher at a time may open.

    Raises:
        HemoscanError: another watcher has it open, or it is not such a file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None)
        except sqlite3.OperationalError as err:
            raise HemoscanError(f"{path} cannot be opened.") from err
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("COMMIT")
            self._db.executescript(TABLES)
        except sqlite3.OperationalError as err:
            self._db.close()
            raise HemoscanError(f"Another “hemoscan watch” has {path}.") from err
        except sqlite3.DatabaseError as err:
            self._db.close()
            raise HemoscanError(f"{path} is not a record of submissions: {err}.") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def known(self) -> set[Seen]:
        """Return all files that belong to a batch."""
        return {Seen(*row) for row in self._db.execute("SELECT path, size, changed FROM file")}

    def add(self, files: Sequence[Seen]) -> None:
        """Assign files to a new batch, which is to be sent."""
        with self._transaction():
            batch = self._db.execute(
                "INSERT INTO batch (key, state) VALUES (?, ?)", (str(uuid4()), SENDING)
            )
            self._db.executemany(
                "INSERT INTO file VALUES (?, ?, ?, ?)",
                [(file.path, file.size, file.changed, batch.lastrowid) for file in files],
            )

    def to_send(self) -> list[Batch]:
        """Return the batches that are not known to have arrived, oldest first."""
        rows = self._db.execute(
            "SELECT id, key FROM batch WHERE state = ? ORDER BY id", (SENDING,)
        ).fetchall()
        return [
            Batch(
                batch_id,
                key,
                [
                    path
                    for (path,) in self._db.execute(
                        "SELECT path FROM file WHERE batch_id = ? ORDER BY path", (batch_id,)
                    )
                ],
            )
            for batch_id, key in rows
        ]

    def end(self, batch: Batch, jobs: Sequence[Job], refusal: str | None = None) -> None:
        """Record the outcome of a batch."""
        scans = json.dumps([job.id for job in jobs])
        self._db.execute(
            "UPDATE batch SET state = ?, scans = ?, sentence = ? WHERE id = ?",
            (REFUSED if refusal else SENT, scans, refusal, batch.id),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


@dataclass
class Callbacks:
    """Callbacks of a watcher.

    Attributes:
        on_sent: called with each batch that was accepted, with its scans.
        on_refused: called with each batch that the service refuses permanently, and the reason.
        on_wait: called with each batch that could not be sent now; it will be retried.
    """

    on_sent: Callable[[Batch, Sequence[Job]], None] = lambda batch, jobs: None
    on_refused: Callable[[Batch, str], None] = lambda batch, why: None
    on_wait: Callable[[Batch, str], None] = lambda batch, why: None


class Watcher:
    """Submits the files of a folder once they stop changing.

    Args:
        quiet_s: a study is complete after this many seconds without a change.
    """

    def __init__(
        self,
        client: Submitting,
        folder: Path,
        memory: Memory,
        choices: Choices,
        *,
        quiet_s: float = 10.0,
        callbacks: Callbacks | None = None,
    ) -> None:
        self._client, self._folder, self._memory = client, folder, memory
        self._choices, self._quiet_s = choices, quiet_s
        self._callbacks = callbacks or Callbacks()
        self._since: dict[str, tuple[frozenset[Seen], float]] = {}

    def look(self) -> None:
        """Scan the folder once, and send what is complete and what is left from before.

        Raises:
            ApiError: the token is not valid, or lacks the right to submit.
            HemoscanError: the folder cannot be read.
        """
        for files in self._settled():
            self._memory.add(files)
        for batch in self._memory.to_send():
            self._send(batch)

    def run(self, every_s: float = 2.0) -> None:
        """Scan repeatedly, until interrupted."""
        while True:
            self.look()
            time.sleep(every_s)

    def _settled(self) -> list[list[Seen]]:
        """Return the new files of each study in which nothing has changed for `quiet_s`."""
        known = self._memory.known()
        units: dict[str, set[Seen]] = {}
        for file in self._files():
            if file not in known:
                units.setdefault(file.unit, set()).add(file)
        now = time.monotonic()
        self._since = {
            unit: self._since[unit]
            if unit in self._since and self._since[unit][0] == files
            else (frozenset(files), now)
            for unit, files in units.items()
        }
        return [
            sorted(files) for files, since in self._since.values() if now - since >= self._quiet_s
        ]

    def _files(self) -> Iterator[Seen]:
        try:
            paths = sorted(self._folder.rglob("*"))
        except OSError as err:
            raise HemoscanError(f"The folder {self._folder} cannot be read: {err}.") from err
        for path in paths:
            inside = path.relative_to(self._folder)
            is_hidden = any(part.startswith(".") for part in inside.parts)
            if is_hidden or path.suffix.lower() in UNFINISHED:
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # Renamed meanwhile.
                continue
            if path.is_file() and status.st_size:
                yield Seen(inside.as_posix(), status.st_size, status.st_mtime_ns)

    def _send(self, batch: Batch) -> None:
        paths = [self._folder / path for path in batch.paths]
        if missing := [path for path in paths if not path.exists()]:
            # A batch with only the remaining files would be a different submission, under a
            # different key.
            sentence = f"{missing[0].name} is gone, so this cannot be sent."
            self._memory.end(batch, [], sentence)
            self._callbacks.on_refused(batch, sentence)
            return
        try:
            jobs = self._client.submit(paths, self._choices, key=batch.key, root=self._folder)
        except ApiError as err:
            if err.status in NO_RIGHT:
                raise
            if err.status in FOR_GOOD:
                self._memory.end(batch, [], str(err))
                self._callbacks.on_refused(batch, str(err))
            else:
                self._callbacks.on_wait(batch, str(err))
        except (Unreachable, OSError) as err:
            self._callbacks.on_wait(batch, str(err))
        else:
            self._memory.end(batch, jobs)
            self._callbacks.on_sent(batch, jobs)
