"""Free space: uploads are refused below a minimum, so that the database, logins and the analysis of
scans continue.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from flask import Flask, current_app, g, has_request_context
from sqlalchemy import func, select

from webapp.extensions import db
from webapp.models import Scan
from webapp.storage import FULL, StorageFull, storage

COPIES = 3
"""How often an upload lies on the disk at most: as sent, as cleaned, as stored."""
CAP_LOOK_S = 10.0
"""The size of all scans is a sum over all rows, so it is not asked for at every upload."""
NO_SPACE = "There is too little free space on the server. Please try again later."
CAP_REACHED = "The storage for scans on this server is full. Please contact an administrator."


class _Announced:
    """Bytes of the uploads that this process is taking in."""

    def __init__(self) -> None:
        self.total = 0
        self.lock = Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.total += size


_announced = _Announced()
_sum_of_scans: dict[str, tuple[float, int]] = {}
"""By database: when all scans were summed up, and what they take."""


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the disk that `folder` is on; None where there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def floor_is_kept(more: int = 0) -> bool:
    """True if so many more bytes leave `MIN_FREE_MB` free where uploads wait and where files
    live.
    """
    floor = current_app.config["MIN_FREE_MB"] * 2**20
    folders = [Path(current_app.config["HEMOSCAN_HOME"]), storage.folder]
    free = [free_bytes(folder) for folder in folders if folder is not None]
    return all(left is None or left - more >= floor for left in free)


def cap_is_reached() -> bool:
    """True if all people's submitted files take `TOTAL_QUOTA_MB` or more, as of the last seconds;
    never where that is 0.
    """
    most = current_app.config["TOTAL_QUOTA_MB"] * 2**20
    if not most:
        return False
    database = current_app.config["SQLALCHEMY_DATABASE_URI"]
    summed_at, total = _sum_of_scans.get(database, (float("-inf"), 0))
    if time.monotonic() - summed_at > CAP_LOOK_S:
        total = int(db.session.scalar(select(func.sum(Scan.size))) or 0)
        _sum_of_scans[database] = time.monotonic(), total
    return total >= most


def has_room() -> bool:
    """True if an upload would be taken in."""
    return floor_is_kept() and not cap_is_reached()


def require_space(size: int) -> None:
    """Refuse an upload of `size` bytes, before it is written, where it would not leave the floor
    free beside those that come in at the same time.

    Raises:
        StorageFull: so it is.
    """
    if not has_request_context():
        wanted = size
    elif hasattr(g, "announced"):
        return
    else:
        g.announced = size
        _announced.add(size)
        wanted = _announced.total
    if not floor_is_kept(COPIES * wanted):
        raise StorageFull(NO_SPACE)


def require_cap() -> None:
    """Refuse an upload where all scans take as much as they may.

    Raises:
        StorageFull: so it is.
    """
    if cap_is_reached():
        raise StorageFull(CAP_REACHED)


@contextmanager
def disk_full_is_told() -> Iterator[None]:
    """Turn a disk that is full into a `StorageFull`; other errors pass, such as those of a client
    that is gone.

    Raises:
        StorageFull: so it is.
    """
    try:
        yield
    except OSError as err:
        if err.errno in FULL:
            raise StorageFull(NO_SPACE) from err
        raise


def init_space(app: Flask) -> None:
    """Let go of what a request announced when it ends."""

    @app.teardown_request
    def let_go(_error: BaseException | None) -> None:
        _announced.add(-g.pop("announced", 0))
