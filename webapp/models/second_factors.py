"""Second factors: the secrets of authenticator apps, and recovery codes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.leased import new_id


class SecondFactor(db.Model):
    """A user's authenticator app; it is required once a first code has confirmed it.

    `sealed_secret` is encrypted (`webapp.accounts.second_factors`). `last_step` is the number of
    the time step whose code was accepted last, so that no code is accepted twice.
    """

    user_id: Mapped[str] = mapped_column(
        ForeignKey("user.id", ondelete="CASCADE"), primary_key=True
    )
    sealed_secret: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    confirmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_step: Mapped[int] = mapped_column(Integer, default=0)


class RecoveryCode(db.Model):
    """A code that replaces the app once; its row is deleted when it is used."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
