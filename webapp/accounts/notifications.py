"""Notifications of results: the available channels, the queued messages, and news for open pages.
`worker/sending/notifications.py` sends what is queued.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

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
    choose,
    new_id,
)
from webapp.models.accounts import lock_person

MOST_NEWS = 200
"""Maximum number of results that a page is notified of at once."""
OVERLAP_S = 10
"""The overlap of consecutive responses. A result has the time at which it was written, but becomes
visible when its transaction commits, at most this much later; pages ignore results that they know
already.
"""


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
    """Queue a message for everybody who wants to be notified of these scans, which just got a
    result; in the caller's transaction, with a number of statements that does not depend on the
    number of scans.
    """
    offered = channels_offered() - {Channel.BROWSER}
    if not scan_ids or not offered:
        return
    is_wanted = or_(*((NotificationChoice.wanted == wanted) & wanted.covers() for wanted in Wanted))
    who = (
        select(NotificationChoice.user_id, NotificationChoice.channel, Scan.id.label("scan_id"))
        .join(Scan, Scan.user_id == NotificationChoice.user_id)
        .where(Scan.id.in_(scan_ids), NotificationChoice.channel.in_(offered), is_wanted)
    )
    rows = [{"id": new_id(), **row} for row in db.session.execute(who).mappings()]
    if rows:
        db.session.execute(insert(Notification).values(rows))


def save_choices(user_id: str, chosen: dict[Channel, Wanted]) -> bool:
    """Replace a user's choices for these channels, and commit; return False if the account was
    deleted or disabled meanwhile.
    """
    if lock_person(user_id) is None:
        return False
    choose(user_id, chosen)
    db.session.commit()
    return True


def queue_test(user_id: str) -> int:
    """Queue a test message for each channel that a user chose; return how many. The caller
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
    """Return the messages that were queued last for a user, newest first."""
    query = (
        select(Notification)
        .where(Notification.user_id == user_id)
        .order_by(Notification.created_at.desc())
        .limit(most)
    )
    return list(db.session.scalars(query))


def news_since(user_id: str, after: datetime) -> tuple[list[str], datetime]:
    """Return the ids of a user's scans that got a result after this time, or up to `OVERLAP_S`
    before it, that they have not opened since and want to be notified of in the browser, newest
    first; and the time of this query, which is the time to ask from next.
    """
    now: datetime = db.session.scalars(select(database_now())).one()
    wanted = choices_of(user_id)[Channel.BROWSER]
    came = (
        select(Scan.id)
        .where(
            Scan.user_id == user_id,
            Scan.finished_at > after - timedelta(seconds=OVERLAP_S),
            Scan.finished_at <= now,
            or_(Scan.opened_at.is_(None), Scan.opened_at < Scan.finished_at),
            Scan.status == JobStatus.DONE,
            wanted.covers(),
        )
        .order_by(Scan.finished_at.desc())
        .limit(MOST_NEWS)
    )
    return list(db.session.scalars(came)), now
