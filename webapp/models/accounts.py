"""Users, their login sessions and their API tokens."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from flask import current_app
from flask_login import UserMixin
from sqlalchemy import ForeignKey, String, func, or_, select
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.extensions import UtcDateTime, db, utc_now
from webapp.models.leased import new_id

# 19 MiB, two passes: OWASP's recommendation. The library's default of 64 MiB, times eight threads,
# would be half a gigabyte.
hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


def new_secret() -> str:
    """Return a secret for a cookie, a token or a link: 256 random bits."""
    return secrets.token_urlsafe(32)


def secret_hash(secret: str) -> str:
    """Return the hash under which a random secret is stored, 64 hexadecimal digits; 256 random bits
    need neither a salt nor a slow hash.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


MAX_TOKENS = 20
"""Maximum number of API tokens per user."""
LONGEST_TOKEN_DAYS = 36_500
"""Maximum validity in days if the operator sets no limit; longer counts as never expiring."""


class Role(StrEnum):
    """What a user may do: a reviewer also sees the scans that are shared with the reviewers, and an
    admin, who is also a reviewer, may use the administration pages.
    """

    USER = "user"
    REVIEWER = "reviewer"
    ADMIN = "admin"


REVIEWERS = (Role.REVIEWER, Role.ADMIN)
"""The roles of the group with which scans can be shared."""


class Scope(StrEnum):
    """What an API token may be used for; it never permits more than its owner may do.

    Attributes:
        READ: scans, results, images and reports.
        SUBMIT: submitting scans, changing, sharing and deleting one's own, and choosing
            notifications.
        REVIEW: opinions and the review queue.
        ADMIN: everything on the administration pages; for administrators only.
    """

    READ = "read"
    SUBMIT = "submit"
    REVIEW = "review"
    ADMIN = "admin"


USUAL_SCOPES = (Scope.READ, Scope.SUBMIT)
"""The scopes of a script that submits scans and reads their results."""


class User(UserMixin, db.Model):
    """A user with an account. `username` and `email` are unique without regard to case."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    username: Mapped[str] = mapped_column(String(64))
    username_key: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(120), default="")
    email: Mapped[str | None] = mapped_column(String(254))
    email_key: Mapped[str | None] = mapped_column(String(254), unique=True)
    phone: Mapped[str] = mapped_column(String(40), default="")
    password_hash: Mapped[str] = mapped_column(String(200))
    role: Mapped[Role] = mapped_column(String(16), default=Role.USER)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    # When the account was disabled: its password, sessions and tokens no longer work.
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __allow_unmapped__ = True
    login_secret: str | None = None
    """Not a column. Set while this user is logged in through a browser: Flask-Login keeps it in the
    cookie (`get_id`).
    """

    def __init__(
        self, *, username: str, password: str, email: str | None = None, **columns: object
    ) -> None:
        email = email or None
        super().__init__(
            username=username,
            username_key=username.lower(),
            email=email,
            email_key=email.lower() if email else None,
            **columns,
        )
        self.set_password(password)

    def set_password(self, password: str) -> None:
        """Store the Argon2 hash of `password`."""
        self.password_hash = hasher.hash(password)

    def has_password(self, password: str) -> bool:
        """Return whether `password` is this user's. Argon2 is slow on purpose."""
        try:
            return hasher.verify(self.password_hash, password)
        except VerificationError:
            return False

    @property
    def is_admin(self) -> bool:
        """Whether this user is an administrator."""
        return self.role == Role.ADMIN

    @property
    def is_reviewer(self) -> bool:
        """True if this user sees what is shared with the reviewers."""
        return self.role in REVIEWERS

    def get_id(self) -> str:
        """Return the secret of this session rather than the user's id, so that a session can be
        ended on the server.

        Raises:
            RuntimeError: this user was not loaded by a session.
        """
        if self.login_secret is None:
            raise RuntimeError("This user was not loaded by a login.")
        return self.login_secret


class LoginSession(db.Model):
    """A login session: one browser that is logged in; deleting the row logs it out.

    Its owner recognizes it by `browser` ("Firefox on Linux") and by `address`, the IP address at
    the login.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    browser: Mapped[str] = mapped_column(String(40), default="")
    address: Mapped[str] = mapped_column(String(45), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    used_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)  # Accurate to a minute.
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    user: Mapped[User] = relationship()


class ApiToken(db.Model):
    """A secret with which a program acts for its owner.

    Attributes:
        scopes: the names of its `Scope`s, separated by spaces.
        expires_at: when it expires; None if it never does.
    """

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(80))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # Accurate to a minute.
    scopes: Mapped[str] = mapped_column(String(80))
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    user: Mapped[User] = relationship()

    @property
    def granted(self) -> list[Scope]:
        """The effective scopes: an administrator's only while its owner is one."""
        scopes = [Scope(name) for name in self.scopes.split()]
        return [scope for scope in scopes if scope in scopes_open_to(self.user)]

    @property
    def has_expired(self) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= utc_now()


class PasswordReset(db.Model):
    """A one-time link with which a user sets a new password; an administrator created it."""

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    made_by_id: Mapped[str | None] = mapped_column(ForeignKey("user.id", ondelete="SET NULL"))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    user: Mapped[User] = relationship(foreign_keys=[user_id])


class TokenRefused(ValueError):
    """Such a token is not created; the message is a sentence for the person who requested it."""


def scopes_open_to(user: User) -> list[Scope]:
    """Return the scopes that a user's tokens may have."""
    return [scope for scope in Scope if scope is not Scope.ADMIN or user.is_admin]


def usual_token_days() -> int:
    """Return the default validity of a token in days; 0: forever."""
    most, usual = current_app.config["TOKEN_MAX_DAYS"], current_app.config["TOKEN_DAYS"]
    return int(min(usual, most) if most and usual else usual or most)


def lock_person(user_id: str) -> str | None:
    """Lock a user's row until the caller commits, so that two requests cannot count or delete the
    user's rows at the same time.

    Rows that refer to this user may still be written (FOR NO KEY UPDATE). SQLite has a single
    writer anyway.

    Returns:
        The hash of the user's password; None if the account was deleted or is disabled.
    """
    row = select(User.password_hash).where(User.id == user_id, User.disabled_at.is_(None))
    return db.session.scalar(row.with_for_update(key_share=True))


def add_token(
    user_id: str,
    name: str,
    scopes: Collection[Scope] = USUAL_SCOPES,
    days: int | None = None,
) -> tuple[ApiToken, str]:
    """Add an API token for a user whose row the caller has locked; return it with its secret. The
    caller commits.

    Args:
        scopes: what it may be used for.
        days: its validity; 0 never expires, None is the default (`TOKEN_DAYS`).

    Raises:
        TokenRefused: the user already has `MAX_TOKENS` valid ones, may not have these scopes, or no
            token may be valid for so long (`TOKEN_MAX_DAYS`).
    """
    now = utc_now()
    owner = db.session.get_one(User, user_id)
    if not scopes:
        raise TokenRefused("Please choose what the token may be used for.")
    if Scope.ADMIN in scopes and not owner.is_admin:
        raise TokenRefused("Only administrators can have tokens for the administration.")
    days = usual_token_days() if days is None else days
    most = current_app.config["TOKEN_MAX_DAYS"]
    if not 0 <= days <= LONGEST_TOKEN_DAYS or (most and not 0 < days <= most):
        most = most or LONGEST_TOKEN_DAYS
        raise TokenRefused(f"A token is valid for at most {most} days here.")
    owned = select(func.count()).where(
        ApiToken.user_id == user_id,
        or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > now),
    )
    if (db.session.scalar(owned) or 0) >= MAX_TOKENS:
        raise TokenRefused(f"You already have {MAX_TOKENS} API tokens. Please revoke one first.")
    secret = new_secret()
    token = ApiToken(
        id=new_id(),
        user_id=user_id,
        name=name,
        secret_hash=secret_hash(secret),
        scopes=" ".join(scope for scope in Scope if scope in scopes),
        expires_at=now + timedelta(days=days) if days else None,
    )
    db.session.add(token)
    return token, secret


def active_admins() -> list[str]:
    """Return the ids of the administrators who are not disabled, and lock their rows until the
    caller commits: if two administrators disable each other at the same moment, one of them fails.
    """
    admins = (
        select(User.id)
        .where(User.role == Role.ADMIN, User.disabled_at.is_(None))
        .order_by(User.id)
        .with_for_update()
    )
    return list(db.session.scalars(admins))
