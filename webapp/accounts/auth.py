"""Accounts: sign up, log in and out, passwords, API tokens."""

from __future__ import annotations

from flask import (
    Blueprint,
    abort,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_login import current_user, login_required, logout_user
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.accounts.logins import (
    end_access,
    end_logins,
    gives_password,
    has_ended,
    limits_guesses,
    remember_browser,
    start_login,
    user_with_password,
    who_guesses,
)
from webapp.accounts.notifications import channels_offered, newest_notifications
from webapp.accounts.second_factors import (
    await_code,
    confirmed_factor,
    lacks_required_factor,
    recovery_codes_left,
)
from webapp.audit import record, whose_request
from webapp.deletion import StillNeeded, delete_account
from webapp.extensions import db, utc_now
from webapp.forms import (
    ChangeFactorForm,
    ChangePasswordForm,
    DeleteAccountForm,
    LoginForm,
    NewPasswordForm,
    NotificationsForm,
    PostedForm,
    SetUpFactorForm,
    SignupForm,
    TokenForm,
    is_id,
)
from webapp.models import (
    Act,
    ApiToken,
    Channel,
    LoginSession,
    PasswordReset,
    Scope,
    User,
    choices_of,
)
from webapp.models.accounts import TokenRefused, add_token, secret_hash
from webapp.web_extensions import limiter

blueprint = Blueprint("auth", __name__)

WRONG = "The username or password is incorrect, or the account is disabled."
MOST_NOTIFICATIONS = 10
FILES_LEFT = "Some files could not be removed yet; they will be removed within a few hours."


def local_target(target: str | None) -> str:
    """Return the URL to open after logging in: `target` if it is a path of this site, or else the
    worklist.
    """
    # Browsers read "/\\host" as "//host", and ignore tabs and line breaks.
    if (
        target
        and target.startswith("/")
        and not target.startswith("//")
        and target.isprintable()
        and not set(target) & set("\\ ")
    ):
        return target
    return url_for("worklist.show")


@blueprint.route("/signup", methods=["GET", "POST"])
@limiter.limit("20 per minute", methods=["POST"])
def signup() -> str | tuple[str, int] | WerkzeugResponse:
    """Create an account and log in."""
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(url_for("worklist.show"))
    form = SignupForm()
    if not form.validate_on_submit():
        return _page("auth/signup.html", form)
    user = User(
        username=form.username.data,
        password=form.password.data,
        email=form.email.data,
        name=form.name.data,
        phone=form.phone.data or "",
    )
    db.session.add(user)
    try:
        db.session.flush()
        record(Act.SIGNED_UP, user.id, actor_id=user.id)
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        if db.session.scalar(select(User.id).where(User.username_key == user.username_key)):
            form.username.errors = ["This username is already taken. Please choose another."]
        else:
            form.email.errors = ["An account with this email address already exists."]
        return _page("auth/signup.html", form)
    start_login(user)
    flash(f"Welcome, {user.name}. Your account is ready.", "success")
    return remember_browser(user, redirect(url_for("worklist.show")))


@blueprint.route("/login", methods=["GET", "POST"])
@limits_guesses("20 per 10 minutes", whose=who_guesses)
def login() -> str | tuple[str, int] | WerkzeugResponse:
    """Log in with this browser; a user with a second factor is then asked for a code."""
    form = LoginForm(next=request.args.get("next"))
    if request.method == "GET" and current_user.is_authenticated:
        return redirect(local_target(form.next.data))
    if form.validate_on_submit():
        user = user_with_password(form.username.data.strip(), form.password.data)
        if user is not None and confirmed_factor(user.id) is not None:
            await_code(user, form.next.data)
            return redirect(url_for("second_factor.give_code"))
        if user is not None:
            start_login(user)
            return remember_browser(user, redirect(local_target(form.next.data)))
        form.form_errors.append(WRONG)
    return _page("auth/login.html", form)


def forget_here(answer: WerkzeugResponse) -> WerkzeugResponse:
    """Tell the browser to delete its cached pages, so that its next user cannot read them.

    Its cookies remain: the session cookie is no longer valid, and the other one marks the browser
    as known.
    """
    answer.headers["Clear-Site-Data"] = '"cache", "storage"'
    return answer


@blueprint.post("/logout")
def logout() -> WerkzeugResponse:
    """Log out of this session."""
    if current_user.is_authenticated:
        db.session.execute(
            delete(LoginSession).where(
                LoginSession.secret_hash == secret_hash(current_user.get_id())
            )
        )
        record(Act.LOGGED_OUT, current_user.id)
        db.session.commit()
    logout_user()
    session.clear()
    flash("You have been logged out.", "success")
    return forget_here(redirect(url_for("scans.home")))


guesses_own_password = limiter.shared_limit(
    "20 per 10 minutes",
    scope="own password",
    key_func=lambda: str(whose_request()),
    methods=["POST"],
    deduct_when=lambda answer: answer.status_code == 400,
)
"""Decorates views that ask a logged-in user for their password again: their failures are counted
together, in case somebody else uses a browser left open.
"""


@blueprint.route("/account", methods=["GET", "POST"])
@login_required
@guesses_own_password
@limiter.limit("20 per minute", methods=["POST"])
def account() -> str | tuple[str, int] | WerkzeugResponse:
    """Show the account page; change the password, which ends other sessions and revokes tokens."""
    form = ChangePasswordForm(current_user.username)
    if form.validate_on_submit():
        user: User = current_user._get_current_object()
        if gives_password(user, form.current_password.data):
            user.set_password(form.password.data)
            end_access(user, but=user.login_secret)
            record(Act.PASSWORD_CHANGED, user.id)
            db.session.commit()
            flash(
                "Your password has been changed. Your other sessions have been logged out and your"
                " API tokens revoked.",
                "success",
            )
            return redirect(url_for("auth.account"))
        form.current_password.errors = ["The current password is incorrect."]
    return account_page(form=form)


@blueprint.post("/account/delete")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def delete_own_account() -> str | tuple[str, int] | WerkzeugResponse:
    """Delete the account with all its scans, after checking the password."""
    form = DeleteAccountForm()
    if form.validate_on_submit():
        user: User = current_user._get_current_object()
        if gives_password(user, form.your_password.data):
            try:
                all_removed = delete_account(user.id)
            except StillNeeded as err:
                form.form_errors.append(str(err))
            else:
                logout_user()
                session.clear()
                flash("Your account and all your scans have been deleted.", "success")
                if not all_removed:
                    flash(FILES_LEFT, "warning")
                return forget_here(redirect(url_for("scans.home")))
        else:
            form.your_password.errors = ["The password is incorrect."]
    return account_page(deletion_form=form)


@blueprint.post("/account/logins/<login_id>/end")
@login_required
def end_login(login_id: str) -> WerkzeugResponse:
    """End one of the user's sessions, in this browser or another."""
    is_own = LoginSession.user_id == current_user.id
    if not is_id(login_id) or not db.session.scalar(
        delete(LoginSession).where(LoginSession.id == login_id, is_own).returning(LoginSession.id)
    ):
        abort(404)
    record(Act.LOGINS_ENDED, login_id)
    db.session.commit()
    flash("Session logged out.", "success")
    return redirect(url_for("auth.account"))


@blueprint.post("/account/logins/end-others")
@login_required
def end_other_logins() -> WerkzeugResponse:
    """End all of the user's sessions except this one."""
    end_logins(current_user, but=current_user.login_secret)
    record(Act.LOGINS_ENDED, current_user.id)
    db.session.commit()
    flash("Your other sessions have been logged out.", "success")
    return redirect(url_for("auth.account"))


@blueprint.post("/account/tokens")
@login_required
@guesses_own_password
@limiter.limit("20 per minute")
def make_token() -> str | tuple[str, int] | WerkzeugResponse:
    """Create an API token, after checking the password, and show it once."""
    form = TokenForm(current_user)
    secret = None
    if form.validate_on_submit():
        user: User = current_user._get_current_object()
        if not gives_password(user, form.token_password.data):
            form.token_password.errors = ["The password is incorrect."]
        else:
            try:
                scopes = [Scope(name) for name in form.scopes.data]
                token, secret = add_token(user.id, form.name.data, scopes, form.days.data)
            except TokenRefused as err:
                form.name.errors = [str(err)]
            else:
                record(Act.TOKEN_MADE, token.id, detail=token.scopes)
                db.session.commit()
                form = TokenForm(current_user, formdata=None)
    page = make_response(account_page(secret, token_form=form))
    page.headers["Cache-Control"] = "no-store"
    return page


@blueprint.post("/account/tokens/<token_id>/revoke")
@login_required
def revoke_token(token_id: str) -> WerkzeugResponse:
    """Revoke one of the user's API tokens."""
    if not is_id(token_id):
        abort(404)
    token = db.session.scalar(
        select(ApiToken).where(ApiToken.id == token_id, ApiToken.user_id == current_user.id)
    )
    if token is None:
        abort(404)
    db.session.delete(token)
    record(Act.TOKEN_REVOKED, token.id)
    db.session.commit()
    flash(f"The token “{token.name}” has been revoked.", "success")
    return redirect(url_for("auth.account"))


@blueprint.route("/reset/<secret>", methods=["GET", "POST"])
@limiter.limit("20 per minute")
def reset(secret: str) -> str | tuple[str, int] | WerkzeugResponse:
    """Set a new password through a link that an administrator created. The link works once; all
    sessions end and all tokens are revoked.
    """
    spent = (
        "This link has already been used or has expired. Please ask an administrator for a new one."
    )
    link = db.session.scalar(
        select(PasswordReset)
        .join(PasswordReset.user)
        .where(
            PasswordReset.secret_hash == secret_hash(secret),
            PasswordReset.expires_at > utc_now(),
            User.disabled_at.is_(None),
        )
    )
    if link is None:
        abort(404, spent)
    user = link.user
    form = NewPasswordForm(user.username)
    if not form.validate_on_submit():
        return _page("auth/reset.html", form, username=user.username)
    db.session.commit()  # Argon2 is slow on purpose; no transaction is open meanwhile.
    user.set_password(form.password.data)
    used = db.session.scalars(
        delete(PasswordReset).where(PasswordReset.user_id == user.id).returning(PasswordReset.id)
    ).all()
    if link.id not in used:  # Another request used the link first.
        abort(404, spent)
    end_access(user)
    record(Act.PASSWORD_RESET, user.id, actor_id=user.id)
    db.session.commit()
    flash("Your new password has been set. Please log in.", "success")
    return remember_browser(user, redirect(url_for("auth.login")))


def _page(
    template: str, form: SignupForm | LoginForm | NewPasswordForm, **context: object
) -> str | tuple[str, int]:
    """Render the page of a form, with status 400 if the form was submitted and rejected."""
    page = render_template(template, form=form, **context)
    return (page, 400) if form.is_submitted() else page


def account_page(secret: str | None = None, **posted: PostedForm) -> str | tuple[str, int]:
    """Render the account page, with status 400 if one of its forms was submitted and rejected.

    Args:
        secret: the API token created by this request.
        posted: the form that was submitted, by its name in the template.
    """
    factor = confirmed_factor(current_user.id)
    offered = channels_offered()
    chosen = {channel: wanted.value for channel, wanted in choices_of(current_user.id).items()}
    forms: dict[str, PostedForm] = {
        "form": ChangePasswordForm(current_user.username, formdata=None),
        "token_form": TokenForm(current_user, formdata=None),
        "deletion_form": DeleteAccountForm(formdata=None),
        "notifications_form": NotificationsForm(offered, formdata=None, data=chosen),
        "factor_form": (ChangeFactorForm if factor else SetUpFactorForm)(formdata=None),
        **posted,
    }
    tokens = db.session.scalars(
        select(ApiToken).where(ApiToken.user_id == current_user.id).order_by(ApiToken.created_at)
    ).all()
    current_logins = (
        select(LoginSession)
        .where(LoginSession.user_id == current_user.id, ~has_ended())
        .order_by(LoginSession.used_at.desc())
    )
    page = render_template(
        "auth/account.html",
        **forms,
        factor=factor,
        recovery_codes_left=recovery_codes_left(current_user.id),
        factor_is_missing=lacks_required_factor(current_user),
        logins=db.session.scalars(current_logins).all(),
        this_login=secret_hash(current_user.login_secret),
        tokens=tokens,
        notifications=newest_notifications(current_user.id, MOST_NOTIFICATIONS),
        has_external_channels=offered != {Channel.BROWSER},
        secret=secret,
    )
    return (page, 400) if any(form.errors for form in forms.values()) else page
