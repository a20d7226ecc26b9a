"""Requests that a program may repeat without having them executed twice."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from webapp.extensions import UtcDateTime, database_now, db
from webapp.models.leased import new_id

KEEP_H = 24
"""For how many hours a response is repeated."""


class IdempotentRequest(db.Model):
    """A request with an `Idempotency-Key`, and its response once there is one.

    Attributes:
        fingerprint: a hash of method, address and body, 64 hexadecimal digits.
        claim: identifies the request in progress; one that takes over gets another claim.
        claimed_until: when that request counts as dead, by the database's clock.
        status, body: the response, as JSON; None while there is none.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(255))
    fingerprint: Mapped[str] = mapped_column(String(64))
    claim: Mapped[str] = mapped_column(String(32), default=new_id)
    claimed_until: Mapped[datetime] = mapped_column(UtcDateTime)
    status: Mapped[int | None]
    body: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=database_now(), index=True)

    __table_args__ = (UniqueConstraint("user_id", "key"),)
