"""The pages of users: roles, password-reset links, lost second factors, disabling and deletion of
accounts.
"""

from __future__ import annotations

from datetime import timedelta

from flask import (
    abort,
    current_app,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import delete, select

from webapp.accounts.auth import FILES_LEFT
from webapp.accounts.logins import end_logins
from webapp.accounts.second_factors import remove
from webapp.admin.pages import blueprint, page_of
from webapp.audit import record
from webapp.deletion import StillNeeded, delete_account
from webapp.extensions import db, utc_now
from webapp.models import Act, PasswordReset, Role, SecondFactor, User, active_admins
from webapp.models.accounts import new_secret, secret_hash

LAST_ADMIN = "This is the only administrator who can log in. Enable or create another one first."
ROLES = {Role.USER: "a user", Role.REVIEWER: "a reviewer", Role.ADMIN: "an administrator"}


@blueprint.get("/users")
def users() -> ResponseReturnValue:
    """List all users, newest first."""
    return render_template(
        "admin/users.html",
        page=page_of(
            User,
            select(User, SecondFactor.confirmed_at)
            .outerjoin(SecondFactor, SecondFactor.user_id == User.id)
            .order_by(User.created_at.desc(), User.id),
        ),
    )


@blueprint.post("/users/<user_id>/role")
def change_role(user_id: str) -> ResponseReturnValue:
    """Make somebody a user, a reviewer or an administrator; the last administrator who can log in
    cannot be demoted.
    """
    user = db.get_or_404(User, user_id)
    role = request.form.get("role", "")
    if role not in set(Role):
        abort(400, "Please choose one of the roles.")
    try:
        if set_role(user, Role(role)):
            flash(f"{user.username} is now {ROLES[user.role]}.", "success")
    except AccountRefused as err:
        flash(str(err), "warning")
    if not current_user.is_admin:  # They changed their own role and may no longer see this page.
        return redirect(url_for("worklist.show"))
    return redirect(url_for("admin.users"))


class AccountRefused(ValueError):
    """The account cannot be changed like this; the message is a sentence for the administrator."""


def set_role(user: User, role: Role) -> bool:
    """Give a user a role, and commit; False if they already have it.

    Raises:
        AccountRefused: they are the only administrator who can log in.
    """
    if user.role == role:
        db.session.commit()
        return False
    # Locks the administrators, so that two who demote each other at the same time leave one.
    if active_admins() == [user.id]:
        db.session.rollback()
        raise AccountRefused(LAST_ADMIN)
    record(Act.ROLE_CHANGED, user.id, detail=f"{user.role} → {role}")
    user.role = role
    db.session.commit()
    return True


@blueprint.post("/users/<user_id>/reset-link")
def make_reset_link(user_id: str) -> ResponseReturnValue:
    """Create a one-time link to set a new password for a user, and show it once."""
    user = db.get_or_404(User, user_id)
    secret = new_secret()
    reset = PasswordReset(
        user_id=user.id,
        made_by_id=current_user.id,
        secret_hash=secret_hash(secret),
        expires_at=utc_now() + timedelta(hours=current_app.config["RESET_LINK_HOURS"]),
    )
    # Only the newest link works, so creating another invalidates one that was lost.
    db.session.execute(delete(PasswordReset).where(PasswordReset.user_id == user.id))
    db.session.add(reset)
    record(Act.RESET_LINK_MADE, user.id)
    db.session.commit()
    link = url_for("auth.reset", secret=secret, _external=True)
    answer = make_response(
        render_template("admin/reset_link.html", user=user, link=link, expires_at=reset.expires_at)
    )
    answer.cache_control.no_store = True
    return answer


@blueprint.post("/users/<user_id>/second-factor/reset")
def reset_second_factor(user_id: str) -> ResponseReturnValue:
    """Remove the second factor of a user who lost it, and end their sessions; removing one's own
    requires password and code, on the account page.
    """
    user = db.get_or_404(User, user_id)
    if user.id == current_user.id:
        return redirect(url_for("auth.account", _anchor="second-factor"))
    if remove(user.id):
        end_logins(user)
        record(Act.SECOND_FACTOR_REMOVED, user.id)
        flash(
            f"The second factor of {user.username} has been removed, and all sessions were logged"
            " out. Until a new one is set up, the password alone is enough to log in.",
            "success",
        )
    db.session.commit()
    return redirect(url_for("admin.users"))


@blueprint.post("/users/<user_id>/delete")
def delete_user(user_id: str) -> ResponseReturnValue:
    """Delete another user's account with all scans; deleting one's own requires the password, on
    the account page.
    """
    user = db.get_or_404(User, user_id)
    if user.id == current_user.id:
        return redirect(url_for("auth.account", _anchor="delete"))
    username = user.username
    try:
        all_removed = delete_account(user.id)
    except StillNeeded as err:
        flash(str(err), "warning")
    else:
        flash(f"The account {username} and all its scans have been deleted.", "success")
        if not all_removed:
            flash(FILES_LEFT, "warning")
    return redirect(url_for("admin.users"))


@blueprint.post("/users/<user_id>/disable")
def disable_user(user_id: str) -> ResponseReturnValue:
    """Disable a user: end all sessions and refuse password, reset links and tokens; keep scans."""
    user = db.get_or_404(User, user_id)
    try:
        if disable(user):
            flash(
                f"{user.username} has been disabled. All sessions were logged out, and"
                " API tokens no longer work.",
                "success",
            )
    except AccountRefused as err:
        flash(str(err), "warning")
    return redirect(url_for("admin.users"))


def disable(user: User) -> bool:
    """Disable a user, and commit; False if they are already disabled.

    Raises:
        AccountRefused: they are the only administrator who can log in.
    """
    if active_admins() == [user.id]:
        db.session.rollback()
        raise AccountRefused(LAST_ADMIN)
    was_enabled = user.disabled_at is None
    if was_enabled:
        user.disabled_at = utc_now()
        end_logins(user)
        record(Act.USER_DISABLED, user.id)
    db.session.commit()
    return was_enabled


@blueprint.post("/users/<user_id>/enable")
def enable_user(user_id: str) -> ResponseReturnValue:
    """Enable a user again, with the same password and tokens."""
    user = db.get_or_404(User, user_id)
    if enable(user):
        flash(f"{user.username} can log in again, and API tokens work again.", "success")
    return redirect(url_for("admin.users"))


def enable(user: User) -> bool:
    """Enable a user again, and commit; False if they are not disabled."""
    was_disabled = user.disabled_at is not None
    if was_disabled:
        user.disabled_at = None
        record(Act.USER_ENABLED, user.id)
    db.session.commit()
    return was_disabled
