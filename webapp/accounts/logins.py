"""Login sessions: start, use and end of each, cookies that make a browser known, and limits on
guessing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import ParamSpec

from argon2.exceptions import VerificationError
from flask import Response, abort, current_app, flash, redirect, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_user
from itsdangerous import BadSignature, URLSafeTimedSerializer
from sqlalchemy import ColumnElement, delete, or_, select, update
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.accounts.passwords import MAX_PASSWORD
from webapp.audit import address, record, record_seldom
from webapp.extensions import db, noting, utc_now
from webapp.forms import MAX_USERNAME, text_problem
from webapp.models import Act, ApiToken, AuditEvent, LoginSession, User
from webapp.models.accounts import hasher, lock_person, new_secret, secret_hash
from webapp.security_headers import cookie_name, over_tls
from webapp.web_extensions import limiter, login_manager

NOTED_S = 60
"""`used_at` of a session or token is updated at most once in this time."""
KNOWN_BROWSER = "known"
KNOWN_BROWSER_DAYS = 400  # The maximum age of a cookie in browsers.
BROWSERS = {
    "Edg": "Edge",
    "OPR": "Opera",
    "Firefox": "Firefox",
    "Chrome": "Chrome",
    "Safari": "Safari",
}
SYSTEMS = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}


P = ParamSpec("P")


@login_manager.user_loader
def user_of_login(secret: str) -> User | None:
    """Return the user of this session; None if it has ended or the account is disabled."""
    row = db.session.execute(
        select(LoginSession, User)
        .join(User, LoginSession.user_id == User.id)
        .where(
            LoginSession.secret_hash == secret_hash(secret),
            ~has_ended(),
            User.disabled_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        return None
    login, user = row
    user.login_secret = secret
    # A page left open polls by itself; that does not count as use.
    if not request.headers.get("HX-Request"):
        note_use(login)
    return user


@login_manager.unauthorized_handler
def ask_to_log_in() -> WerkzeugResponse:
    """Redirect to the login form, which then redirects to the requested page."""
    if request.headers.get("HX-Request"):
        # Reload the whole page, not a fragment.
        return Response(status=204, headers={"HX-Refresh": "true"})
    flash("Please log in first.", "warning")
    wanted = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("auth.login", next=wanted))


def has_ended() -> ColumnElement[bool]:
    """Return the SQL condition for sessions that have expired, by age or inactivity."""
    idle_since = utc_now() - timedelta(hours=current_app.config["LOGIN_IDLE_HOURS"])
    return or_(LoginSession.expires_at <= utc_now(), LoginSession.used_at <= idle_since)


def note_use(row: LoginSession | ApiToken) -> None:
    """Record that a session or token is used now, at most once a minute, and commit."""
    a_while_ago = utc_now() - timedelta(seconds=NOTED_S)
    if row.used_at is not None and row.used_at > a_while_ago:
        return
    table = type(row)
    stale = or_(table.used_at.is_(None), table.used_at <= a_while_ago)
    used = update(table).where(table.id == row.id, stale).values(used_at=utc_now())
    with noting():
        db.session.execute(used, execution_options={"synchronize_session": False})


def start_login(user: User) -> None:
    """Log `user` in with this browser, and commit; an earlier session of the browser ends.

    Raises:
        Unauthorized: since the password was checked, it was changed or the account was disabled.
    """
    lock_unchanged(user)
    if "_user_id" in session:
        db.session.execute(
            delete(LoginSession).where(LoginSession.secret_hash == secret_hash(session["_user_id"]))
        )
    user.login_secret = new_secret()
    db.session.execute(delete(LoginSession).where(LoginSession.user_id == user.id, has_ended()))
    db.session.add(
        LoginSession(
            user_id=user.id,
            secret_hash=secret_hash(user.login_secret),
            browser=browser_name(request.user_agent.string),
            address=address(),
            expires_at=utc_now() + timedelta(days=current_app.config["LOGIN_DAYS"]),
        )
    )
    record(Act.LOGGED_IN, user.id, actor_id=user.id)
    db.session.commit()
    # The cookie session from before the login must not survive it (session fixation).
    session.clear()
    session.permanent = True
    login_user(user)


def lock_unchanged(user: User) -> None:
    """Lock the row of `user` until the caller commits.

    Raises:
        Unauthorized: since the row was read, the password was changed or the account was disabled.
    """
    if lock_person(user.id) != user.password_hash:
        abort(401)


def gives_password(user: User, password: str) -> bool:
    """Return whether `password` is that of a user who is logged in; their row is then locked until
    the caller commits, so that what the password allows precedes any change of it.

    Raises:
        Unauthorized: meanwhile, the password was changed or the account was disabled.
    """
    db.session.commit()  # Argon2 is slow on purpose; no transaction is open meanwhile.
    if not user.has_password(password):
        return False
    lock_unchanged(user)
    return True


def end_logins(user: User, but: str | None = None) -> None:
    """End all sessions of `user` except the one with the secret `but`; the caller commits."""
    ended = delete(LoginSession).where(LoginSession.user_id == user.id)
    if but is not None:
        ended = ended.where(LoginSession.secret_hash != secret_hash(but))
    db.session.execute(ended)


def require_login_still() -> None:
    """Check that this request's session has not ended since the request arrived, and lock it until
    the caller commits.

    Raises:
        Unauthorized: the session has ended.
    """
    login = select(LoginSession.id).where(
        LoginSession.secret_hash == secret_hash(current_user.login_secret)
    )
    if db.session.scalar(login.with_for_update(read=True)) is None:
        abort(401)


def end_access(user: User, but: str | None = None) -> None:
    """End all sessions of `user` except the one with the secret `but`, and revoke all their API
    tokens, as every change of a password requires; the caller commits.
    """
    db.session.flush()  # Writing the new password locks the row, so no token is added meanwhile.
    end_logins(user, but)
    db.session.execute(delete(ApiToken).where(ApiToken.user_id == user.id))


def browser_name(user_agent: str) -> str:
    """Return a browser name that its user recognizes, such as "Firefox on Linux"."""
    browser = next(
        (name for sign, name in BROWSERS.items() if f"{sign}/" in user_agent), "A browser"
    )
    system = next((name for sign, name in SYSTEMS.items() if sign in user_agent), None)
    return f"{browser} on {system}" if system else browser


@cache
def nobodys_password_hash() -> str:
    """Return a hash to check passwords of unknown users against, so that this takes the same
    time.
    """
    return hasher.hash(new_secret())


def user_with_password(username: str, password: str) -> User | None:
    """Return the user with this username and password; None if they do not match or the account is
    disabled. It takes the same time whether or not the username exists.

    A failure is recorded in the audit log, and committed.
    """
    user = None
    if text_problem(username, MAX_USERNAME) is None:
        user = db.session.scalar(select(User).where(User.username_key == username.lower()))
    db.session.commit()  # Argon2 is slow on purpose; no transaction is open meanwhile.
    if len(password) > MAX_PASSWORD:
        password = ""
    if user is not None:
        is_right = user.has_password(password)
    else:
        is_right = False
        with suppress(VerificationError):
            hasher.verify(nobodys_password_hash(), password)
    if user is not None and is_right and user.disabled_at is None:
        return user
    record(Act.LOGIN_FAILED, user.id if user else None)
    db.session.commit()
    return None


def who_guesses() -> str:
    """Return the key under which a failed login is counted: one for each browser that was logged in
    to this account before, and one for all other browsers together.

    So strangers get few guesses at an account, from however many addresses, and cannot lock its
    owner out. An account that does not exist is treated the same way.
    """
    return guesser(account_key(request.form.get("username", "").strip()[:MAX_USERNAME]))


def account_key(username: str) -> str:
    """Return a digest that represents an account in cookies and counters, even if it does not
    exist.
    """
    return hashlib.sha256(username.lower().encode("utf-8", "replace")).hexdigest()


def guesser(account: str) -> str:
    """Return the key under which this request's guess at an account (`account_key`) is counted."""
    try:
        known_account, browser = known_browsers().loads(
            request.cookies.get(cookie_name(KNOWN_BROWSER), ""), max_age=KNOWN_BROWSER_DAYS * 86_400
        )
    except (BadSignature, ValueError):
        return f"account {account}"
    return f"browser {browser}" if known_account == account else f"account {account}"


def remember_browser(user: User, answer: WerkzeugResponse) -> WerkzeugResponse:
    """Set the cookie that marks this browser as known to the account, for `guesser`; it grants no
    access. Return `answer`.
    """
    account = account_key(user.username)
    answer.set_cookie(
        cookie_name(KNOWN_BROWSER),
        str(known_browsers().dumps([account, new_secret()])),
        max_age=KNOWN_BROWSER_DAYS * 86_400,
        secure=over_tls(),
        httponly=True,
        samesite="Lax",
    )
    return answer


def known_browsers() -> URLSafeTimedSerializer:
    """Return the serializer that signs the cookies of known browsers."""
    return URLSafeTimedSerializer(current_app.config["SECRET_KEY"], salt="hemoscan known browser")


def limits_guesses(
    each: str, whose: Callable[[], str]
) -> Callable[[Callable[P, ResponseReturnValue]], Callable[P, ResponseReturnValue]]:
    """Return a decorator for views that check a password or a code: failed attempts are limited by
    address, and by the key that `whose` returns.

    Args:
        each: how many attempts with the same key may fail, in Flask-Limiter's notation.
        whose: returns the key under which this request's failure is counted.
    """
    by_address = limiter.limit(
        "10 per minute", methods=["POST"], deduct_when=has_failed, on_breach=record_throttling
    )
    by_key = limiter.limit(
        each, methods=["POST"], key_func=whose, deduct_when=has_failed, on_breach=record_throttling
    )
    return lambda view: by_address(by_key(view))


def has_failed(answer: WerkzeugResponse) -> bool:
    """Return whether a login failed: a successful one redirects."""
    return answer.status_code != 302


def record_throttling(_limit: object) -> None:
    """Record that too many logins failed, and commit; called by Flask-Limiter."""
    record_seldom(Act.LOGIN_THROTTLED, None, AuditEvent.address == address())
    db.session.commit()
