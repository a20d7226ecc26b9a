"""File storage under one fsspec URL, a local folder or S3. Keys are never chosen by a user."""

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
"""For botocore: a web request must not hang for minutes if the storage is unavailable; workers
retry by themselves.
"""


READ_AHEAD = 4 * 2**20
"""Bytes of an open file that are read from S3 at once; the library's default of fifty million would
be held in memory for each reader.
"""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a full disk, an exhausted quota and a file size limit."""

STARTED = ".started"
"""The empty folder that setup creates in a new storage, to distinguish it from the bare mount point
of an unavailable one.
"""


class StorageError(RuntimeError):
    """Reading or writing failed; the message contains neither content nor location of the file."""


class StorageFull(StorageError):
    """There is no room for more, on this machine or in the storage."""


class StorageUnavailable(StorageError):
    """The storage as a whole is unavailable; the failure says nothing about the requested file."""


class MissingFile(StorageError):
    """The storage is available but has no such file, so a retry is useless."""


def new_key(kind: str, suffix: str = "") -> str:
    """Return a fresh key such as `originals/3f…c2.dcm`."""
    return f"{kind}/{new_id()}{suffix}"


class Storage:
    """Files by key under one URL. A file exists completely or not at all."""

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
        # S3 runs an event loop in a thread, which a fork does not copy, so each process opens its
        # own on first use.
        if self._opened is None or self._opened[0] != os.getpid():
            options = {"config_kwargs": S3_PATIENCE} if self._protocol == "s3" else {}
            files = fsspec.filesystem(
                self._protocol, skip_instance_cache=True, use_listings_cache=False, **options
            )
            self._opened = (os.getpid(), files)
        return self._opened[1]

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """The exceptions of a failing storage: s3fs converts error responses to OSErrors, but not
        connection errors.
        """
        if self._protocol != "s3":
            return (OSError,)
        # Imported here because it takes 20 MB, which a local folder does not need.
        from botocore.exceptions import BotoCoreError

        return (OSError, BotoCoreError)

    @contextmanager
    def _asking(self, otherwise: str) -> Iterator[None]:
        """Convert exceptions of the storage to a `StorageError` with the message `otherwise`."""
        try:
            yield
        except self._failures as err:
            is_full = isinstance(err, OSError) and err.errno in FULL
            raise (StorageFull if is_full else StorageError)(otherwise) from err

    @property
    def folder(self) -> Path | None:
        """The folder that contains the files; None if they are not on this machine's disks."""
        return Path(self._root) if self._protocol == "file" else None

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def start(self) -> None:
        """Create the folder of a new storage and the marker in it, without which nothing is stored
        there; does nothing for a bucket.

        Raises:
            StorageError: it could not be created.
        """
        if self._protocol == "file":
            with self._asking("The storage folder cannot be created."):
                self._files.makedirs(self._path(STARTED), exist_ok=True)

    def put(self, key: str, content: bytes | Path) -> None:
        """Store bytes, or a local file, under `key`.

        Raises:
            StorageUnavailable: the folder is missing or empty. Below a mount point the file would
                be lost to other machines, and would make an unavailable storage look like one that
                has lost its files.
            StorageError: it could not be written (`StorageFull` if there is no space); nothing is
                left behind.
        """
        if self._protocol == "file" and not self.answers():
            raise StorageUnavailable("The storage cannot be reached at the moment.")
        # An S3 object becomes visible only when it is complete; in a folder this takes a temporary
        # name and a rename.
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
        """Distinguish a missing file from an unavailable storage, whose folder is not mounted or
        whose bucket is unreachable.
        """
        with self._asking("A stored file cannot be read."):
            try:
                yield
            except FileNotFoundError as err:
                if self.answers():
                    raise MissingFile("A stored file no longer exists.") from err
                raise

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return the content under `key`, or only its bytes from `start` to before `stop`, in which
        case nothing else is read or transferred.

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
        """Return whether the storage is available: a folder that exists or a bucket that can be
        reached, and is not empty, as an unmounted network folder would be.
        """
        try:
            return bool(self._files.ls(self._root, detail=False))
        except self._failures:
            return False

    def exists(self, key: str) -> bool:
        """Return whether there is a file under `key`.

        Raises:
            StorageError: the storage cannot be read.
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
        """Return all keys under `prefix` with the time each was written, by the storage's clock.

        Raises:
            StorageError: they cannot be listed.
        """
        root = self._path(prefix)
        with self._asking("The storage cannot be read."):
            files = self._files.find(root, detail=True) if self._files.exists(root) else {}
        return {
            str(path)[str(path).index(f"{self._root}/") + len(self._root) + 1 :]: about[
                "LastModified"
            ]
            if self._protocol == "s3"
            else datetime.fromtimestamp(about["mtime"], UTC)
            for path, about in files.items()
        }

    def delete(self, key: str) -> None:
        """Delete the file or folder under `key`; does nothing if there is none.

        Raises:
            StorageError: it cannot be deleted.
        """
        path = self._path(key)
        with self._asking("A stored file cannot be removed."):
            if self._files.exists(path):
                self._files.rm(path, recursive=True)

    def discard(self, key: str) -> bool:
        """Delete a file that is no longer needed; return False if that failed and is left to
        `worker.orphaned_files`.
        """
        try:
            self.delete(key)
        except StorageError as err:
            log.warning("%s could not be removed: %s", key, type(err.__cause__).__name__)
            return False
        return True


def init_storage(app: Flask) -> None:
    """Open the storage of `app`."""
    app.extensions["storage"] = Storage(app.config["STORAGE_URL"])


storage: Storage = LocalProxy(lambda: current_app.extensions["storage"])  # type: ignore[assignment]
