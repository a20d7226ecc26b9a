"""Second factors (TOTP, RFC 6238): setting one up, checking codes, and who must have one.

The secret is stored encrypted with a key derived from `SECRET_KEY`, so that a stolen copy of the
database is not enough to make codes. It is shown once, during setup.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pyotp
import segno
from cryptography.fernet import InvalidToken
from flask import current_app, session
from markupsafe import Markup
from pyotp.exceptions import OTPVerificationError
from sqlalchemy import delete, func, select, update

from webapp.accounts.logins import account_key
from webapp.extensions import db, utc_now
from webapp.models import RecoveryCode, SecondFactor, User
from webapp.models.accounts import secret_hash
from webapp.sealing import sealer

log = logging.getLogger(__name__)

ISSUER = "Hemoscan"
SEALED_FOR = "second factor"
RECOVERY_CODES = 10
EARLY_OR_LATE_STEPS = 1
"""The clock of a phone may be off by one step of 30 s, and typing takes a while."""
PENDING = "second_factor"
PENDING_FOR = timedelta(minutes=5)
"""How long after the password the code is accepted."""


class AlreadySetUp(ValueError):
    """This user already has a second factor; the message is a sentence for them."""

    def __init__(self) -> None:
        super().__init__("A second factor is already set up. Turn it off first.")


def confirmed_factor(user_id: str) -> SecondFactor | None:
    """Return the confirmed second factor of a user; None if there is none."""
    return db.session.scalar(
        select(SecondFactor).where(
            SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_not(None)
        )
    )


def lacks_required_factor(user: User) -> bool:
    """Return whether this user needs a second factor (`REQUIRE_SECOND_FACTOR`) and has none."""
    return (
        bool(current_app.config["REQUIRE_SECOND_FACTOR"])
        and user.is_admin
        and confirmed_factor(user.id) is None
    )


def begin(user_id: str) -> str:
    """Store a new, unconfirmed secret for a user whose row the caller has locked, and return it in
    base32. The caller commits.

    Raises:
        AlreadySetUp: the user has a confirmed second factor.
    """
    if confirmed_factor(user_id) is not None:
        raise AlreadySetUp
    db.session.execute(delete(SecondFactor).where(SecondFactor.user_id == user_id))
    secret = pyotp.random_base32()
    db.session.add(
        SecondFactor(
            user_id=user_id, sealed_secret=sealer(SEALED_FOR).encrypt(secret.encode()).decode()
        )
    )
    return secret


def confirm(user_id: str, code: str) -> bool:
    """Confirm a user's new secret if `code` is one of its codes; return whether it is. The caller
    commits.
    """
    waiting = db.session.scalar(
        select(SecondFactor).where(
            SecondFactor.user_id == user_id, SecondFactor.confirmed_at.is_(None)
        )
    )
    step = _step_of(waiting, code) if waiting is not None else None
    if waiting is None or step is None:
        return False
    same = (
        SecondFactor.user_id == user_id,
        SecondFactor.sealed_secret == waiting.sealed_secret,
        SecondFactor.confirmed_at.is_(None),
    )
    counts = update(SecondFactor).where(*same).values(confirmed_at=utc_now(), last_step=step)
    return db.session.scalar(counts.returning(SecondFactor.user_id)) is not None


def new_recovery_codes(user_id: str) -> list[str]:
    """Replace a user's recovery codes and return the new ones; the caller commits."""
    db.session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
    codes = [
        base64.b32encode(secrets.token_bytes(15)).decode().lower() for _ in range(RECOVERY_CODES)
    ]
    db.session.add_all(
        RecoveryCode(user_id=user_id, secret_hash=secret_hash(code)) for code in codes
    )
    return ["-".join(re.findall("....", code)) for code in codes]


def recovery_codes_left(user_id: str) -> int:
    """Return how many unused recovery codes a user has."""
    query = select(func.count()).select_from(RecoveryCode).where(RecoveryCode.user_id == user_id)
    return db.session.scalar(query) or 0


def accepts(user_id: str, text: str) -> type[SecondFactor] | type[RecoveryCode] | None:
    """Use up a code from a user's app or a recovery code; return which it was, or None if it is
    neither. The caller commits.

    A code from the app is refused if it or a later one was accepted before.
    """
    code = re.sub(r"[\s-]", "", text.lower())
    factor = confirmed_factor(user_id)
    if factor is None:
        return None
    if (step := _step_of(factor, code)) is not None:
        unspent = (SecondFactor.user_id == user_id, SecondFactor.last_step < step)
        spent = update(SecondFactor).where(*unspent).values(last_step=step)
        done = db.session.scalar(spent.returning(SecondFactor.user_id))
        return None if done is None else SecondFactor
    used = (RecoveryCode.user_id == user_id, RecoveryCode.secret_hash == secret_hash(code))
    used_code = db.session.scalar(delete(RecoveryCode).where(*used).returning(RecoveryCode.id))
    return None if used_code is None else RecoveryCode


def remove(user_id: str) -> bool:
    """Delete a user's second factor and recovery codes; return whether there was a confirmed one.
    The caller commits.
    """
    counted = confirmed_factor(user_id) is not None
    for table in (SecondFactor, RecoveryCode):
        db.session.execute(delete(table).where(table.user_id == user_id))
    return counted


def qr_code(user: User, secret: str) -> Markup:
    """Return the QR code for the authenticator app as SVG, dark on white in every color scheme."""
    address = pyotp.TOTP(secret).provisioning_uri(name=user.username, issuer_name=ISSUER)
    return Markup(
        segno.make(address, error="m", micro=False).svg_inline(
            dark="#000",
            light="#fff",
            svgclass="qr",
            lineclass=None,
            omitsize=True,
            title="QR code for your authenticator app",
        )
    )


def await_code(user: User, target: str | None) -> None:
    """Store in the signed cookie that `user` entered the correct password in this browser. This
    does not log them in yet.

    Args:
        target: the URL to open after the login.
    """
    session[PENDING] = {
        "user": user.id,
        "account": account_key(user.username),
        "password": _trace(user),
        "until": (utc_now() + PENDING_FOR).timestamp(),
        "next": target or "",
    }


def awaited() -> tuple[User, str] | None:
    """Return the user whose code is awaited in this browser, and the URL to open afterwards; None
    if no password was entered, it was entered too long ago, or it has changed since.
    """
    pending: Mapping[str, Any] | None = session.get(PENDING)
    if pending is None or pending["until"] < utc_now().timestamp():
        return None
    user = db.session.get(User, pending["user"])
    if user is None or user.disabled_at is not None or _trace(user) != pending["password"]:
        return None
    return user, pending["next"]


def awaited_account() -> str:
    """Return the `account_key` of the account for which this browser is asked for a code."""
    return str(session.get(PENDING, {}).get("account", ""))


def _trace(user: User) -> str:
    """Return a digest that changes with the password of `user`, and reveals nothing about it."""
    return secret_hash(user.password_hash)


def _step_of(factor: SecondFactor, code: str) -> int | None:
    """Return the number of the time step of `code`; None if it is not a current code."""
    if not re.fullmatch("[0-9]{6}", code):
        return None
    try:
        secret = sealer(SEALED_FOR).decrypt(factor.sealed_secret).decode()
        return pyotp.TOTP(secret).verify_and_get_timecode(code, valid_window=EARLY_OR_LATE_STEPS)
    except OTPVerificationError:
        return None
    except InvalidToken:
        log.warning(
            "the second factor of user=%s was encrypted with another SECRET_KEY", factor.user_id
        )
        return None
