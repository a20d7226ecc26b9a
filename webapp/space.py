"""Space for uploads: the free space that must remain on the server, so that the database, logins
and the analysis of scans continue; the quota of all scans; and the quota of each user.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from flask import Flask, current_app, g, has_request_context

from webapp.models.totals import size_of_all, totals_of
from webapp.storage import FULL, StorageFull, storage

COPIES = 3
"""Maximum number of copies of an upload on the disk: as sent, as cleaned, as stored."""
NO_SPACE = "There is too little free space on the server. Please try again later."
CAP_REACHED = "The storage for scans on this server is full. Please contact an administrator."


class _Announced:
    """Bytes of the uploads that this process is receiving."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.total += size


_announced = _Announced()


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the disk that `folder` is on; None if there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def has_free_space(more: int = 0) -> bool:
    """True if `more` bytes leave `MIN_FREE_MB` free, both in the folder for incoming uploads and in
    the storage.
    """
    floor = current_app.config["MIN_FREE_MB"] * 2**20
    folders = [Path(current_app.config["HEMOSCAN_HOME"]), storage.folder]
    free = [free_bytes(folder) for folder in folders if folder is not None]
    return all(left is None or left - more >= floor for left in free)


def cap_is_reached() -> bool:
    """True if the submitted files of all users take `TOTAL_QUOTA_MB` or more; always False if that
    is 0.
    """
    most = current_app.config["TOTAL_QUOTA_MB"] * 2**20
    return bool(most) and size_of_all() >= most


def has_room() -> bool:
    """True if an upload would be accepted."""
    return has_free_space() and not cap_is_reached()


def require_space(size: int) -> None:
    """Refuse an upload of `size` bytes before it is written, if it and the uploads received at the
    same time would not leave `MIN_FREE_MB` free.

    Raises:
        StorageFull: there is too little space.
    """
    if not has_request_context():
        wanted = size
    elif hasattr(g, "announced"):
        return
    else:
        g.announced = size
        _announced.add(size)
        wanted = _announced.total
    if not has_free_space(COPIES * wanted):
        raise StorageFull(NO_SPACE)


def require_cap() -> None:
    """Refuse an upload if the scans of all users have reached their quota.

    Raises:
        StorageFull: the quota is reached.
    """
    if cap_is_reached():
        raise StorageFull(CAP_REACHED)


def quota_problem(user_id: str, more: int = 0) -> str | None:
    """Return a sentence if the user's scans have reached `QUOTA_MB`, or would exceed it with `more`
    bytes; else None.
    """
    quota_mb = current_app.config["QUOTA_MB"]
    if not quota_mb:
        return None
    stored = totals_of(user_id).size
    if stored >= quota_mb * 2**20:
        return (
            f"Your scans use {stored >> 20} of the {quota_mb} MB that you may store. Please delete"
            " some."
        )
    if stored + more > quota_mb * 2**20:
        total_mb = -(-(stored + more) >> 20)
        return (
            f"With this upload your scans would use {total_mb} MB, but you may store {quota_mb} MB."
            " Please delete some."
        )
    return None


@contextmanager
def as_storage_full() -> Iterator[None]:
    """Convert the error of a full disk to a `StorageFull`; other errors pass, such as those of a
    client that has disconnected.

    Raises:
        StorageFull: the disk is full.
    """
    try:
        yield
    except OSError as err:
        if err.errno in FULL:
            raise StorageFull(NO_SPACE) from err
        raise


def init_space(app: Flask) -> None:
    """Release the announced size of an upload when its request ends."""

    @app.teardown_request
    def release(_error: BaseException | None) -> None:
        _announced.add(-g.pop("announced", 0))
