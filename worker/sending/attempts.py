"""What sending messages and sending results have in common: attempts have a time limit, failures
are retried later, and a failing receiver does not delay others.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from flask import Flask
from sqlalchemy import ColumnElement, or_, update

from webapp.extensions import database_now, db
from webapp.models import JobStatus, Notification, ResultDelivery
from worker import leases
from worker.heartbeat import heartbeat

log = logging.getLogger(__name__)

PAUSE_S = 30
"""Nothing else is sent to a receiver for this long after a failure, so that one that hangs does not
hold up the others.
"""

Sent = TypeVar("Sent", Notification, ResultDelivery)


class NotDelivered(Exception):
    """Something was not accepted; a later attempt may succeed. The message is a sentence."""


class NotAllowed(NotDelivered):
    """Something may not be sent, so retries are useless. The message is a sentence."""


def send_meanwhile(app: Flask, lock: threading.Lock, send_due: Callable[[], None]) -> None:
    """Send what is due in a thread, so that no sweep waits for a receiver; only one thread at a
    time (`lock`).
    """

    def send() -> None:
        with lock, app.app_context():
            try:
                send_due()
            except Exception:  # The next sweep starts again.
                db.session.rollback()
                log.exception("the due messages or results could not be sent")

    if not lock.locked():
        threading.Thread(target=send, name="sends", daemon=True).start()


def within(limit_s: float, deliver: Callable[[], None]) -> None:
    """Call `deliver`, which may hang, with a time limit; a thread that still hangs after that is
    abandoned.

    Raises:
        NotDelivered: it failed or took too long.
    """
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            deliver()
        except Exception as err:  # noqa: BLE001 - passed to the waiting thread, which raises it.
            ended.put(err)
        else:
            ended.put(None)

    threading.Thread(target=run, name="delivers", daemon=True).start()
    try:
        failure = ended.get(timeout=limit_s)
    except queue.Empty:
        raise NotDelivered(f"There was no response within {limit_s:g} seconds.") from None
    if isinstance(failure, NotDelivered):
        raise failure
    if failure is not None:
        log.error("sending failed unexpectedly: %s", place_of(failure))
        raise NotDelivered(f"It could not be sent ({type(failure).__name__}).") from failure


def place_of(err: Exception) -> str:
    """Return the type of an unexpected error and where it was raised, for the log: not its message,
    which may quote what was to be sent.
    """
    last = traceback.extract_tb(err.__traceback__)[-1]
    return f"{type(err).__name__} in {last.filename}, line {last.lineno}"


def note_failure(
    row: Sent, sentence: str, waits_s: Sequence[int], same_receiver: ColumnElement[bool]
) -> None:
    """Postpone a row that this worker holds, or fail it after the last of `waits_s`; pause the rows
    for `same_receiver`. The caller commits.
    """
    table, owner, tries = type(row), heartbeat().owner, row.tries + 1
    if tries > len(waits_s):
        leases.write(table, owner, [row.id], tries=tries)
        leases.fail(table, owner, {row.id: sentence})
    else:
        leases.write(table, owner, [row.id], tries=tries, error=sentence)
        leases.put_off(table, owner, [row.id], waits_s[tries - 1])
    log.warning("%s=%s try %d failed: %s", table.__name__.lower(), row.id, tries, sentence)
    until = database_now(PAUSE_S)
    db.session.execute(
        update(table)
        .where(
            table.status == JobStatus.QUEUED,
            same_receiver,
            table.id != row.id,
            or_(table.retry_at.is_(None), table.retry_at < until),
        )
        .values(retry_at=until),
        execution_options={"synchronize_session": False},
    )
