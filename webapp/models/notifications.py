"""Who wants to be notified of which results, and the messages to be sent: the queue of the
maintenance workers.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    delete,
    insert,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from webapp.extensions import db
from webapp.models.leased import Leased, new_id, queue_index
from webapp.models.scans import Scan


class Channel(StrEnum):
    """A way to be notified; all but the browser have to be set up by an operator."""

    BROWSER = "browser"
    EMAIL = "email"
    CHAT = "chat"
    WEBHOOK = "webhook"


class Wanted(StrEnum):
    """Which results a user wants to be notified of."""

    NONE = "none"
    SUSPICIOUS = "suspicious"
    STAT = "stat"
    ALL = "all"

    def covers(self, scan: type[Scan] = Scan) -> ColumnElement[bool]:
        """Return the condition of the scans that this choice covers, once they have a result."""
        if self is Wanted.SUSPICIOUS:
            return scan.verdict_state.in_(("suspected", "inconclusive"))
        if self is Wanted.STAT:
            return scan.stat.is_(True)
        return true() if self is Wanted.ALL else ~true()


DEFAULTS = {Channel.BROWSER: Wanted.ALL}
"""The default for users who never chose; other channels are off."""


class NotificationChoice(db.Model):
    """A user's choice for one channel."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    channel: Mapped[Channel] = mapped_column(String(16))
    wanted: Mapped[Wanted] = mapped_column(String(16))

    __table_args__ = (UniqueConstraint("user_id", "channel"),)


class Notification(Leased, db.Model):
    """A message to one user through one channel; its id is the delivery id, by which receivers
    distinguish a repeated delivery from a new one.

    It is queued in the transaction of the result that it announces. `tries` counts failed tries,
    `error` gives the reason for the last failure, and `retry_at` is the time of the next try.
    """

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    # Empty for a test message.
    scan_id: Mapped[str | None] = mapped_column(
        ForeignKey("scan.id", ondelete="CASCADE"), index=True
    )
    channel: Mapped[Channel] = mapped_column(String(16))
    tries: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        Index(None, "status", "queued_at"),
        # For the newest messages, on the account page.
        Index("ix_notification_of_user", "user_id", "created_at"),
        queue_index("ix_notification_queue"),
    )

    @classmethod
    def in_turn_of(cls) -> InstrumentedAttribute[str] | None:
        """Return its recipient."""
        return cls.user_id  # type: ignore[return-value]


def choices_of(user_id: str) -> dict[Channel, Wanted]:
    """Return a user's choice for each channel, or the default."""
    chosen = db.session.execute(
        select(NotificationChoice.channel, NotificationChoice.wanted).where(
            NotificationChoice.user_id == user_id
        )
    )
    none = dict.fromkeys(Channel, Wanted.NONE)
    return {
        **none,
        **DEFAULTS,
        **{Channel(choice.channel): Wanted(choice.wanted) for choice in chosen},
    }


def choose(user_id: str, chosen: dict[Channel, Wanted]) -> None:
    """Replace a user's choices for these channels; the caller has locked the user's row and
    commits.
    """
    db.session.execute(
        delete(NotificationChoice).where(
            NotificationChoice.user_id == user_id, NotificationChoice.channel.in_(chosen)
        )
    )
    rows = [
        {"id": new_id(), "user_id": user_id, "channel": channel, "wanted": wanted}
        for channel, wanted in chosen.items()
    ]
    db.session.execute(insert(NotificationChoice).values(rows))
