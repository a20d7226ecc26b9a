"""Where files live: one fsspec URL, a local folder or S3. Keys are made here, never by a user."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from flask import Flask, current_app
from werkzeug.local import LocalProxy

from webapp.models.leased import new_id

log = logging.getLogger(__name__)

S3_PATIENCE = {"connect_timeout": 2, "read_timeout": 20, "retries": {"max_attempts": 1}}
"""botocore's: a web request must not hang for minutes on a storage that is away; workers try again
by themselves.
"""


READ_AHEAD = 4 * 2**20
"""Bytes of an open file that are fetched from S3 at once; its library would hold fifty million for
each reader.
"""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that is full, a quota that is used up and a file that may not grow."""

STARTED = ".started"
"""The empty folder that setup makes in a new storage, which is then told from the bare mount point
of one that is away.
"""


class StorageError(RuntimeError):
    """The storage refused to read or write; the text is a sentence without the file's content or
    address.
    """


class StorageFull(StorageError):
    """There is no room for more, on this machine or in the storage."""


class StorageAway(StorageError):
    """The storage as a whole is not there: what failed says nothing about the file that was asked
    for.
    """


class MissingFile(StorageError):
    """The storage answers, and has no such file: asking again is of no use."""


def new_key(kind: str, suffix: str = "") -> str:
    """Return a fresh key such as `originals/3f…c2.dcm`."""
    return f"{kind}/{new_id()}{suffix}"


class Storage:
    """Files by key under one URL. A file is there whole or not at all."""

    def __init__(self, url: str) -> None:
        """`url` is `file:///folder` or `s3://bucket/prefix`; an S3 endpoint and keys come from the
        AWS_* environment.

        Raises:
            ValueError: the URL is of another kind.
        """
        protocol, _, path = url.partition("://")
        if protocol not in ("file", "s3") or not path:
            raise ValueError(
                f"STORAGE_URL must be file:///folder or s3://bucket/prefix, not {url!r}."
            )
        self._protocol = protocol
        self._root = path.rstrip("/")
        self._opened: tuple[int, Any] | None = None

    @property
    def _files(self) -> Any:
        # S3 runs an event loop in a thread, which a fork does not copy: each process opens its own,
        # at first use.
        if self._opened is None or self._opened[0] != os.getpid():
            options = {"config_kwargs": S3_PATIENCE} if self._protocol == "s3" else {}
            files = fsspec.filesystem(
                self._protocol, skip_instance_cache=True, use_listings_cache=False, **options
            )
            self._opened = (os.getpid(), files)
        return self._opened[1]

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a storage raises that refuses or is away; s3fs turns answers into OSErrors, and lets
        through that there was none.
        """
        if self._protocol != "s3":
            return (OSError,)
        # here: a folder needs none of it, and it takes 20 MB
        from botocore.exceptions import BotoCoreError

        return (OSError, BotoCoreError)

    @contextmanager
    def _asking(self, otherwise: str) -> Iterator[None]:
        """Turn what the storage raises into a `StorageError` that says `otherwise`."""
        try:
            yield
        except self._failures as err:
            is_full = isinstance(err, OSError) and err.errno in FULL
            raise (StorageFull if is_full else StorageError)(otherwise) from err

    @property
    def folder(self) -> Path | None:
        """The folder that the files are in; None where they are not on this machine's disks."""
        return Path(self._root) if self._protocol == "file" else None

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def start(self) -> None:
        """Make the folder of a new storage, and something in it, without which nothing is put
        there; a bucket needs none.

        Raises:
            StorageError: it could not be made.
        """
        if self._protocol == "file":
            with self._asking("The storage's folder cannot be made."):
                self._files.makedirs(self._path(STARTED), exist_ok=True)

    def put(self, key: str, content: bytes | Path) -> None:
        """Store bytes, or a local file, under `key`.

        Raises:
            StorageAway: the folder is not there or empty: on the disk under a mount point the file
                would be lost to all others, and whatever lies there makes a storage that is away
                look like one that has lost its files.
            StorageError: it could not be written (`StorageFull` where there is no room); nothing is
                left behind.
        """
        if self._protocol == "file" and not self.answers():
            raise StorageAway("The storage cannot be reached at the moment.")
        # S3 shows an object only when it is complete; a folder needs a second name and a rename for
        # that.
        target = self._path(key)
        written = target if self._protocol == "s3" else f"{target}.{new_id()}.part"
        try:
            with self._asking("The storage did not accept a file; please try again later."):
                if written != target:
                    self._files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                if isinstance(content, Path):
                    self._files.put_file(str(content), written)
                else:
                    self._files.pipe_file(written, content)
                if written != target:
                    os.replace(written, target)
        except StorageError:
            if written != target:
                with suppress(OSError):
                    Path(written).unlink()
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell a file that is not there from a storage that is away: its folder is unmounted, its
        bucket cannot be reached.
        """
        with self._asking("A stored file cannot be read."):
            try:
                yield
            except FileNotFoundError as err:
                if self.answers():
                    raise MissingFile("A stored file is not there any more.") from err
                raise

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the content under `key`, or its bytes from `start` to before `stop`: nothing else
        is read or sent.

        Raises:
            StorageError: it cannot be read.
        """
        with self._reading():
            content: bytes = self._files.cat_file(self._path(key), start=start or None, end=stop)
        return content

    def open(self, key: str) -> IO[bytes]:
        """Return a readable, seekable file of the content under `key`.

        Raises:
            StorageError: it cannot be read.
        """
        with self._reading():
            opened: IO[bytes] = self._files.open(self._path(key), "rb", block_size=READ_AHEAD)
        return opened

    def fetch(self, key: str, path: Path) -> None:
        """Copy the content under `key` to a local file.

        Raises:
            StorageError: it cannot be read.
        """
        with self._reading():
            self._files.get_file(self._path(key), str(path))

    def answers(self) -> bool:
        """True if the storage is there: a folder, or a bucket that can be reached, and something in
        it.

        What a network folder is mounted over is a folder too, and empty.
        """
        try:
            return bool(self._files.ls(self._root, detail=False))
        except self._failures:
            return False

    def exists(self, key: str) -> bool:
        """True if there is something under `key`.

        Raises:
            StorageError: it cannot be told.
        """
        with self._asking("The storage cannot be read."):
            return bool(self._files.exists(self._path(key)))

    def keys(self, prefix: str) -> list[str]:
        """Return all keys under `prefix`, a kind or a folder.

        Raises:
            StorageError: they cannot be listed.
        """
        return sorted(self.written(prefix))

    def written(self, prefix: str) -> dict[str, datetime]:
        """Return all keys under `prefix` and when each was written, by the storage's clock.

        Raises:
            StorageError: they cannot be listed.
        """
        root = self._path(prefix)
        with self._asking("The storage cannot be read."):
            found = self._files.find(root, detail=True) if self._files.exists(root) else {}
        return {
            str(path)[str(path).index(f"{self._root}/") + len(self._root) + 1 :]: about[
                "LastModified"
            ]
            if self._protocol == "s3"
            else datetime.fromtimestamp(about["mtime"], UTC)
            for path, about in found.items()
        }

    def delete(self, key: str) -> None:
        """Remove what is under `key`, a file or a folder; nothing there is fine.

        Raises:
            StorageError: it cannot be removed.
        """
        path = self._path(key)
        with self._asking("A stored file cannot be removed."):
            if self._files.exists(path):
                self._files.rm(path, recursive=True)

    def discard(self, key: str) -> bool:
        """Remove what nobody needs any more; False where that is left to `worker.orphaned_files`,
        as the storage is away.
        """
        try:
            self.delete(key)
        except StorageError as err:
            log.warning("%s could not be removed: %s", key, type(err.__cause__).__name__)
            return False
        return True


def init_storage(app: Flask) -> None:
    """Give `app` its storage."""
    app.extensions["storage"] = Storage(app.config["STORAGE_URL"])


storage: Storage = LocalProxy(lambda: current_app.extensions["storage"])  # type: ignore[assignment]
