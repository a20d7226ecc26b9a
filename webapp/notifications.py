"""Notifications of results: which channels there are, what is queued for them, and what is new for
pages that are open. `worker/deliveries.py` sends what is queued.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from flask import current_app
from sqlalchemy import insert, or_, select

from webapp.extensions import database_now, db
from webapp.models import (
    Channel,
    JobStatus,
    Notification,
    NotificationChoice,
    Scan,
    Wanted,
    choices_of,
    new_id,
)

MOST_NEWS = 20
"""Results that a page is told of at once."""


def channels_offered() -> set[Channel]:
    """Return the channels that this service can use: the browser, and what the operator set up."""
    settings = {
        Channel.EMAIL: "NOTIFY_EMAIL_URL",
        Channel.CHAT: "NOTIFY_CHAT_URL",
        Channel.WEBHOOK: "NOTIFY_WEBHOOK_URL",
    }
    return {Channel.BROWSER} | {
        channel for channel, setting in settings.items() if current_app.config[setting]
    }


def queue_notifications(scan_ids: Collection[str]) -> None:
    """Queue a message for everybody who wants to be told of these scans, which just got a result;
    in the caller's transaction, in a number of statements that does not depend on theirs.
    """
    offered = channels_offered() - {Channel.BROWSER}
    if not scan_ids or not offered:
        return
    is_wanted = or_(*((NotificationChoice.wanted == one) & one.covers() for one in Wanted))
    who = (
        select(NotificationChoice.user_id, NotificationChoice.channel, Scan.id.label("scan_id"))
        .join(Scan, Scan.user_id == NotificationChoice.user_id)
        .where(Scan.id.in_(scan_ids), NotificationChoice.channel.in_(offered), is_wanted)
    )
    rows = [{"id": new_id(), **one} for one in db.session.execute(who).mappings()]
    if rows:
        db.session.execute(insert(Notification).values(rows))


def queue_test(user_id: str) -> int:
    """Queue a test message for each channel that a person chose; return how many. The caller
    commits.
    """
    chosen = choices_of(user_id)
    channels = [
        channel
        for channel in sorted(channels_offered() - {Channel.BROWSER})
        if chosen[channel] is not Wanted.NONE
    ]
    for channel in channels:
        db.session.add(Notification(user_id=user_id, channel=channel))
    return len(channels)


def newest_notifications(user_id: str, most: int) -> list[Notification]:
    """Return the messages that were queued last for a person, the newest first."""
    own = (
        select(Notification)
        .where(Notification.user_id == user_id)
        .order_by(Notification.created_at.desc())
        .limit(most)
    )
    return list(db.session.scalars(own))


def news_since(user_id: str, after: datetime) -> tuple[list[str], datetime]:
    """Return the ids of a person's scans that got a result after that time and that the person
    wants to be told of in the browser, the newest first; and until when the database was asked.
    """
    now: datetime = db.session.scalars(select(database_now())).one()
    wanted = choices_of(user_id)[Channel.BROWSER]
    came = (
        select(Scan.id)
        .where(
            Scan.user_id == user_id,
            Scan.finished_at > after,
            Scan.finished_at <= now,
            Scan.status == JobStatus.DONE,
            wanted.covers(),
        )
        .order_by(Scan.finished_at.desc())
        .limit(MOST_NEWS)
    )
    return list(db.session.scalars(came)), now
