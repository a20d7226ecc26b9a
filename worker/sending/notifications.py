"""Sends queued notifications, in the background of the sweeps, with retries.

A message contains a sentence and a link, and nothing about a patient. It is sent at least once: if
a worker dies after sending and before recording that, the next one sends it again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import apprise
from flask import Flask, current_app
from sqlalchemy import delete, select, update

from webapp.accounts.notifications import channels_offered
from webapp.extensions import database_now, db
from webapp.models import Channel, JobStatus, Notification, User
from worker import leases
from worker.heartbeat import heartbeat
from worker.retries import in_transaction
from worker.sending.attempts import NotAllowed, NotDelivered, note_failure, send_meanwhile, within
from worker.sending.webhooks import post, signed

log = logging.getLogger(__name__)
# Apprise's log may contain addresses; this module logs failures itself.
logging.getLogger("apprise").setLevel(logging.CRITICAL)

RETRY_S = (10, 60, 300, 1800, 7200)
"""The wait after each failure; one more failure is final."""
MOST_S = 15.0
"""An attempt that takes longer than this has failed."""
MOST_TOGETHER = 200
"""Maximum number of results in one message."""
KEEP_S = 30 * 24 * 3600

_sending = threading.Lock()


def send_notifications_meanwhile(app: Flask) -> None:
    """Send due messages in a thread, so that no sweep waits for a receiver."""
    send_meanwhile(app, _sending, send_due)


def send_due() -> None:
    """Send one message after another until none is due or this worker stops."""
    mine, last = heartbeat(), ""

    def claim() -> list[Notification]:
        return leases.claim(Notification, mine.owner, after=last)

    while not mine.stopping() and (claimed := in_transaction(claim)):
        last = claimed[0].user_id
        with mine.holding(Notification, [claimed[0].id]):
            send(claimed[0])


def send(notification: Notification) -> None:
    """Send a claimed message, and record the outcome."""
    owner, ids = heartbeat().owner, [notification.id]
    try:
        deliver, together = prepared(notification)
        within(MOST_S, deliver)
    except NotAllowed as err:
        sentences = {notification.id: str(err)}
        in_transaction(lambda: leases.fail(Notification, owner, sentences))
    except NotDelivered as err:
        sentence = str(err)
        same = Notification.channel == notification.channel
        in_transaction(lambda: note_failure(notification, sentence, RETRY_S, same))
    else:
        in_transaction(lambda: leases.finish(Notification, owner, ids))
        in_transaction(lambda: note_superseded(together))


def prepared(notification: Notification) -> tuple[Callable[[], None], list[str]]:
    """Return a function that sends a message without using the database, and the ids of the waiting
    messages that it supersedes, because it announces their results as well.

    Raises:
        NotAllowed: it may not be sent to that user.
    """
    config, person = current_app.config, db.session.get(User, notification.user_id)
    channel, scan_id = Channel(notification.channel), notification.scan_id
    together: list[str] = []
    if channel is not Channel.WEBHOOK and scan_id is not None:
        together = waiting_beside(notification)
    # No transaction is open while waiting for a receiver; the loaded rows stay usable.
    db.session.commit()
    if person is None or person.disabled_at is not None:
        raise NotAllowed("The account is disabled.")
    if channel not in channels_offered():
        raise NotAllowed("This channel is no longer offered.")
    sentence, link = message_of(config["PUBLIC_URL"], scan_id, 1 + len(together))
    if channel is Channel.WEBHOOK:
        return partial(call_webhook, config, notification.id, sentence, link), together
    address = config["NOTIFY_CHAT_URL"]
    if channel is Channel.EMAIL:
        if not person.email:
            raise NotAllowed("The account has no email address.")
        address = config["NOTIFY_EMAIL_URL"]
        address += f"{'&' if '?' in address else '?'}to={quote(person.email)}"
    # Not subject to the time limit: the first call loads all of Apprise's services.
    service = apprise.Apprise.instantiate(address)
    if service is None:
        raise NotAllowed("The address that the operator configured for this channel is invalid.")
    return partial(send_by_apprise, service, f"{sentence}\n{link}"), together


def message_of(public_url: str, scan_id: str | None, results: int) -> tuple[str, str]:
    """Return the sentence and the link of a message: nothing else is sent."""
    if scan_id is None:
        return "This is a test message from Hemoscan.", f"{public_url}/account"
    if results > 1:
        return f"{results} scans in Hemoscan have a result.", f"{public_url}/scans"
    return "A scan in Hemoscan has a result.", f"{public_url}/scans/{scan_id}"


def waiting_beside(notification: Notification) -> list[str]:
    """Return the ids of other messages about results to the same user through the same channel."""
    others = (
        select(Notification.id)
        .where(
            Notification.user_id == notification.user_id,
            Notification.status == JobStatus.QUEUED,
            Notification.channel == notification.channel,
            Notification.scan_id.is_not(None),
            Notification.id != notification.id,
        )
        .order_by(Notification.queued_at)
        .limit(MOST_TOGETHER - 1)
    )
    return list(db.session.scalars(others))


def send_by_apprise(service: apprise.NotifyBase, text: str) -> None:
    """Send a message by e-mail or to a chat.

    Raises:
        NotDelivered: it was not accepted.
    """
    if not service.notify(title="Hemoscan", body=text, body_format="text"):
        raise NotDelivered("The service did not accept the message.")


def call_webhook(config: Mapping[str, Any], delivery_id: str, sentence: str, link: str) -> None:
    """Send a message to the operator's webhook.

    Raises:
        NotDelivered: it was not accepted.
    """
    now = int(time.time())
    body = {"type": "scan.result", "timestamp": now, "data": {"sentence": sentence, "url": link}}
    content = json.dumps(body).encode()
    post(
        config["NOTIFY_WEBHOOK_URL"],
        content,
        signed(delivery_id, now, content, config["NOTIFY_WEBHOOK_SECRET"]),
        allows_private=config["NOTIFY_PRIVATE_ADDRESSES"],
    )


def note_superseded(ids: Collection[str]) -> None:
    """Mark these messages as superseded by another one."""
    if ids:
        db.session.execute(
            update(Notification)
            .where(Notification.id.in_(ids), Notification.status == JobStatus.QUEUED)
            .values(status=JobStatus.DONE, finished_at=database_now(), error=None),
            execution_options={"synchronize_session": False},
        )


def remove_old_notifications() -> None:
    """Delete messages that were sent or failed `KEEP_S` ago."""
    old = Notification.status.in_([status for status in JobStatus if status.is_final])
    in_transaction(
        lambda: db.session.execute(
            delete(Notification).where(old, Notification.finished_at < database_now(-KEEP_S))
        )
    )
