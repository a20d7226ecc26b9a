"""Retries for temporary failures of storage, disk or database, at most three times.

If the storage stays unavailable, no job fails: jobs return to the queue, and nothing is claimed
until it is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from webapp.extensions import db
from webapp.storage import MissingFile, StorageError, StorageUnavailable, storage
from worker.heartbeat import heartbeat

log = logging.getLogger(__name__)

WAITS_S = (0.2, 1.0, 3.0)
NO_ROOM = "A worker could not write to its disk, which may be full. Please try again later."

Result = TypeVar("Result")


def retry_storage(action: Callable[[], Result]) -> Result:
    """Return the result of `action`, which uses the storage, with retries.

    Raises:
        MissingFile: there is no such file.
        StorageUnavailable: it failed three times, and the storage does not respond at all.
        StorageError: it failed four times.
    """

    def once_more() -> Result:
        # Checked before the last attempt: otherwise a storage that recovers in between would look
        # like a damaged file.
        if not storage_answers():
            raise StorageUnavailable("The storage cannot be reached at the moment.")
        return action()

    return _retry(action, (StorageError,), once_more)


def storage_is_back() -> bool:
    """False while the storage, found unavailable by this process, still does not respond: claimed
    work could only be returned to the queue.
    """
    return not heartbeat().misses_storage or storage_answers()


def storage_answers() -> bool:
    """True if the storage responds; only changes are logged."""
    mine, answers = heartbeat(), storage.answers()
    if mine.misses_storage and answers:
        log.info("the storage responds again")
    elif not mine.misses_storage and not answers:
        log.warning("the storage does not respond; nothing is claimed until it does")
    mine.misses_storage = not answers
    return answers


def retry_disk(action: Callable[[], Result]) -> Result:
    """Return the result of `action`, which writes files to this machine's disk, which may be full
    for a while.

    Raises:
        StorageError: it failed four times; a `StorageUnavailable` if the storage is unavailable,
            too.
    """

    def once() -> Result:
        try:
            return action()
        except OSError as err:
            raise StorageError(NO_ROOM) from err

    return retry_storage(once)


def in_transaction(action: Callable[[], Result]) -> Result:
    """Return the result of `action`, which uses the database, in a separate transaction.

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

    return _retry(once, (OperationalError, InterfaceError), once)


def _retry(
    action: Callable[[], Result],
    passing: tuple[type[Exception], ...],
    at_last: Callable[[], Result],
) -> Result:
    for wait_s in WAITS_S:
        try:
            return action()
        except MissingFile:
            raise
        except passing as err:
            log.warning("%s, retrying in %.1f s", type(err).__name__, wait_s)
            time.sleep(wait_s)
    return at_last()
