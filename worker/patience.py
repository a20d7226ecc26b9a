"""What may pass by itself (a storage or a database that is away for a moment) is tried again, at most three times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from webapp.extensions import db
from webapp.storage import MissingFile, StorageError

log = logging.getLogger(__name__)

WAITS_S = (0.2, 1.0, 3.0)
NO_ROOM = "A worker could not write to its own disk, which may be full; please try again later."

Result = TypeVar("Result")


def stored(action: Callable[[], Result]) -> Result:
    """Return what `action` does with the storage.

    Raises:
        MissingFile: there is no such file.
        StorageError: it failed four times.
    """
    return _patiently(action, (StorageError,))


def kept(action: Callable[[], Result]) -> Result:
    """Return what `action` makes of files that it writes to this machine's disk, which may be full for a while.

    Raises:
        StorageError: it failed four times.
    """

    def once() -> Result:
        try:
            return action()
        except OSError as err:
            raise StorageError(NO_ROOM) from err

    return stored(once)


def committed(action: Callable[[], Result]) -> Result:
    """Return what `action` does with the database, in a transaction of its own.

    Raises:
        OperationalError, InterfaceError: it failed four times.
    """

    def once() -> Result:
        try:
            result = action()
            db.session.commit()
        except BaseException:
            db.session.rollback()
            raise
        return result

    return _patiently(once, (OperationalError, InterfaceError))


def _patiently(action: Callable[[], Result], passing: tuple[type[Exception], ...]) -> Result:
    for wait_s in WAITS_S:
        try:
            return action()
        except MissingFile:
            raise
        except passing as err:
            log.warning("%s, trying again in %.1f s", type(err).__name__, wait_s)
            time.sleep(wait_s)
    return action()
