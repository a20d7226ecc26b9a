"""The pages of second factors: giving a code at login, setting up, recovery codes, turning off."""

from __future__ import annotations

from flask import Blueprint, flash, make_response, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required
from werkzeug.wrappers import Response

from webapp.accounts.auth import account_page, guesses_own_password, local_target
from webapp.accounts.logins import (
    end_logins,
    gives_password,
    guesser,
    limits_guesses,
    remember_browser,
    start_login,
)
from webapp.accounts.second_factors import (
    AlreadySetUp,
    accepts,
    awaited,
    awaited_account,
    begin,
    confirm,
    confirmed_factor,
    new_recovery_codes,
    qr_code,
    recovery_codes_left,
    remove,
)
from webapp.audit import record
from webapp.extensions import db
from webapp.forms import ChangeFactorForm, CodeForm, SetUpFactorForm
from webapp.models import Act, RecoveryCode, User
from webapp.web_extensions import limiter

blueprint = Blueprint("second_factor", __name__)

WRONG_CODE = "This code is wrong, has expired or was used before."


def who_gives_codes() -> str:
    """Return the key under which a wrong code is counted, as for passwords."""
    return guesser(awaited_account())


@blueprint.route("/login/code", methods=["GET", "POST"])
# Three of a million codes are valid at any time, so 50 tries a day find one on one day in 6,667.
@limits_guesses("10 per 10 minutes; 50 per day", whose=who_gives_codes)
def give_code() -> ResponseReturnValue:
    """Ask for a code from the app or a recovery code, after the password, and log in."""
    if (waiting := awaited()) is None:
        flash("Please log in again.", "warning")
        return redirect(url_for("auth.login"))
    user, target = waiting
    form = CodeForm()
    if form.validate_on_submit():
        kind = accepts(user.id, form.code.data)
        if kind is not None:
            if kind is RecoveryCode:
                record(Act.RECOVERY_CODE_USED, user.id, actor_id=user.id)
                left = recovery_codes_left(user.id)
            start_login(user)
            if kind is RecoveryCode:
                flash(f"You used a recovery code; {left} are left.", "warning")
            return remember_browser(user, redirect(local_target(target)))
        record(Act.SECOND_FACTOR_FAILED, user.id)
        db.session.commit()
        form.code.errors = [WRONG_CODE]
    page = render_template("auth/code.html", form=form)
    return (page, 400) if form.is_submitted() else page


@blueprint.post("/account/second-factor")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def set_up() -> ResponseReturnValue:
    """Show a new secret once, after checking the password; a first code then confirms it."""
    form = SetUpFactorForm()
    if confirmed_factor(current_user.id) is not None:
        return _to_account(str(AlreadySetUp()))
    if not form.validate_on_submit() or (user := _with_password(form)) is None:
        return account_page(factor_form=form)
    try:
        secret = begin(user.id)
    except AlreadySetUp as err:
        db.session.rollback()
        return _to_account(str(err))
    db.session.commit()
    code_form, qr = CodeForm(formdata=None), qr_code(user, secret)
    return _unstored("auth/second_factor.html", form=code_form, secret=secret, qr=qr)


@blueprint.post("/account/second-factor/confirm")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def confirm_secret() -> ResponseReturnValue:
    """Turn the second factor on with a first code, end other sessions, and show recovery codes."""
    form = CodeForm()
    if form.validate_on_submit():
        user: User = current_user._get_current_object()
        if confirm(user.id, form.code.data.strip().replace(" ", "")):
            codes = new_recovery_codes(user.id)
            end_logins(user, but=user.login_secret)
            record(Act.SECOND_FACTOR_SET_UP, user.id)
            db.session.commit()
            return _unstored("auth/recovery_codes.html", codes=codes, is_new=True)
        db.session.rollback()
        form.code.errors = ["This code is wrong or has expired."]
    return render_template("auth/second_factor.html", form=form, secret=None), 400


@blueprint.post("/account/second-factor/recovery-codes")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def renew_recovery_codes() -> ResponseReturnValue:
    """Replace the recovery codes, after checking password and code; show the new ones once."""
    form = ChangeFactorForm()
    if confirmed_factor(current_user.id) is None:
        return _to_account("The second factor is off.")
    if (user := _with_password_and_code(form)) is None:
        return account_page(factor_form=form)
    codes = new_recovery_codes(user.id)
    record(Act.RECOVERY_CODES_MADE, user.id)
    db.session.commit()
    return _unstored("auth/recovery_codes.html", codes=codes, is_new=False)


@blueprint.post("/account/second-factor/remove")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def turn_off() -> ResponseReturnValue:
    """Turn the second factor off, after checking password and code."""
    form = ChangeFactorForm()
    if confirmed_factor(current_user.id) is None:
        return _to_account("The second factor is off.")
    if (user := _with_password_and_code(form)) is None:
        return account_page(factor_form=form)
    remove(user.id)
    record(Act.SECOND_FACTOR_REMOVED, user.id)
    db.session.commit()
    return _to_account("The second factor has been turned off.", "success")


def _with_password(form: SetUpFactorForm) -> User | None:
    """Return the logged-in user with their row locked if the password in the form is correct;
    otherwise add an error to the form and return None.
    """
    user: User = current_user._get_current_object()
    if not gives_password(user, form.factor_password.data):
        form.factor_password.errors = ["The password is incorrect."]
        return None
    return user


def _with_password_and_code(form: ChangeFactorForm) -> User | None:
    """Return the logged-in user with their row locked and the code used up if password and code are
    correct; otherwise add an error to the form, commit, and return None.
    """
    if not form.validate_on_submit() or (user := _with_password(form)) is None:
        return None
    if (kind := accepts(user.id, form.factor_code.data)) is None:
        form.factor_code.errors = [WRONG_CODE]
        record(Act.SECOND_FACTOR_FAILED, user.id)
        db.session.commit()
        return None
    if kind is RecoveryCode:
        record(Act.RECOVERY_CODE_USED, user.id)
    return user


def _to_account(sentence: str, category: str = "warning") -> Response:
    """Redirect to the account page and show a message there."""
    flash(sentence, category)
    return redirect(url_for("auth.account", _anchor="second-factor"))


def _unstored(template: str, **context: object) -> Response:
    """Return a page that shows a secret, so that no cache may store it."""
    page = make_response(render_template(template, **context))
    page.headers["Cache-Control"] = "no-store"
    return page
