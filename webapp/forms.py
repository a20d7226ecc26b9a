"""The forms of accounts and the worklist, and the validation of text that other modules share."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from flask import current_app, request
from flask_wtf import FlaskForm
from werkzeug.datastructures import CombinedMultiDict, FileStorage, MultiDict
from wtforms import (
    DateField,
    Field,
    FileField,
    Form,
    HiddenField,
    IntegerField,
    PasswordField,
    RadioField,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
    TextAreaField,
)
from wtforms.validators import DataRequired, Email, Length, Optional, Regexp, ValidationError
from wtforms.widgets import CheckboxInput

from ml.catalogue import BLEEDING_TYPES
from ml.verdict import STATES
from webapp.accounts.passwords import MIN_PASSWORD, password_problem
from webapp.models import Channel, Finding, JobStatus, Scope, User, Wanted
from webapp.models.accounts import USUAL_SCOPES, scopes_open_to, usual_token_days

MAX_USERNAME, MAX_NAME, MAX_EMAIL, MAX_PHONE, MAX_TITLE, MAX_TOKEN_NAME = 64, 120, 254, 40, 80, 80
MAX_CODE = 40
MAX_COMMENT = 1000

ID = r"[0-9a-f]{32}\Z"

required = DataRequired("Please fill in this field.")


def is_id(text: str) -> bool:
    """Return whether `text` looks like the id of a row. Nothing else is sent to the database,
    because PostgreSQL rejects NUL characters.
    """
    return re.match(ID, text) is not None


def moment_of(text: str) -> datetime | None:
    """Parse a point in time in ISO 8601, in UTC unless it has a time zone; None if it is invalid,
    or outside the years 1 to 9999.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def text_problem(text: str, longest: int) -> str | None:
    """Return, as a sentence, why `text` is not a line of at most `longest` printable characters;
    None if it is.
    """
    if len(text) > longest:
        return f"Please use at most {longest} characters."
    # PostgreSQL rejects NUL characters.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "Please use printable characters only."
    return None


def lines_problem(text: str, longest: int) -> str | None:
    """Return, as a sentence, why `text` is not a text of several lines with at most `longest`
    printable characters in total; None if it is.
    """
    return text_problem(text.replace("\n", " ").replace("\t", " "), longest)


def username_problem(username: str) -> str | None:
    """Return, as a sentence, why this username is not allowed; None if it is."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{1,{MAX_USERNAME - 1}}}", username):
        return (
            f"Usernames have 2 to {MAX_USERNAME} letters, digits, dots, dashes or underscores, and"
            " start with a letter or digit."
        )
    return None


def at_most(characters: int) -> Length:
    """Return a validator for the maximum length, which browsers enforce too."""
    return Length(max=characters, message=f"Please use at most {characters} characters.")


_posted = object()
"""The default for a form's data: the data of the current request."""


class TextField(StringField):
    """A line of text, stripped of surrounding spaces; control characters are rejected."""

    def process_formdata(self, valuelist: list[str]) -> None:
        super().process_formdata([value.strip() for value in valuelist])

    def pre_validate(self, form: Form) -> None:
        problem = text_problem(self.data or "", longest=10_000)
        if problem:
            raise ValidationError(problem)


class PostedForm(FlaskForm):
    """A form as browsers post it: text fields come from text parts, files from file parts.

    Flask-WTF alone would also fill a text field from a file with its name or from a JSON body,
    which validators do not expect and rate limits do not see.
    """

    class Meta(FlaskForm.Meta):  # type: ignore[misc]
        """How the request's data is passed to the fields."""

        def wrap_formdata(self, form: Form, formdata: Any) -> MultiDict[str, Any] | None:
            """Return the values of the correct type for each field; None if nothing was posted."""
            if formdata is None or (formdata is not _posted and not formdata):
                return None
            if formdata is _posted:
                if request.method not in ("POST", "PUT", "PATCH", "DELETE"):
                    return None
                formdata = CombinedMultiDict([request.files, request.form])
                if not formdata:
                    return None
            typed: MultiDict[str, Any] = MultiDict()
            for name, field in form._fields.items():
                kind = FileStorage if isinstance(field, FileField) else str
                values = [value for value in formdata.getlist(name) if isinstance(value, kind)]
                if values:
                    typed.setlist(name, values)
            return typed

    def __init__(self, formdata: Any = _posted, **kwargs: Any) -> None:
        super().__init__(formdata=formdata, **kwargs)


class SignupForm(PostedForm):
    """A new account."""

    username = TextField(
        "Username",
        [required, at_most(MAX_USERNAME)],
        render_kw={"autocomplete": "username", "autocapitalize": "none"},
    )
    name = TextField("Name", [required, at_most(MAX_NAME)], render_kw={"autocomplete": "name"})
    email = TextField(
        "Email",
        [required, at_most(MAX_EMAIL), Email("Please enter a valid email address.")],
        render_kw={"autocomplete": "email", "type": "email"},
    )
    phone = TextField(
        "Phone number",
        [
            Optional(),
            at_most(MAX_PHONE),
            Regexp(
                r"^[0-9+(). /x-]{3,}$",
                message="Phone numbers may contain only digits, spaces and + ( ) . / -",
            ),
        ],
        description="Optional.",
        render_kw={"autocomplete": "tel", "type": "tel"},
    )
    password = PasswordField(
        "Password",
        [required],
        description=f"At least {MIN_PASSWORD} characters; a few unrelated words are best.",
        render_kw={"autocomplete": "new-password"},
    )

    def validate_username(self, field: StringField) -> None:
        """Reject invalid usernames."""
        problem = username_problem(field.data or "")
        if problem:
            raise ValidationError(problem)

    def validate_password(self, field: PasswordField) -> None:
        """Reject passwords that are easy to guess."""
        problem = password_problem(self.username.data or "", field.data or "")
        if problem:
            raise ValidationError(problem)


class LoginForm(PostedForm):
    """Username and password. Values that are too long get the same response as a wrong password."""

    username = StringField(
        "Username",
        [required],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "autofocus": True},
    )
    password = PasswordField("Password", [required], render_kw={"autocomplete": "current-password"})
    next = HiddenField()


class NewPasswordForm(PostedForm):
    """A new password; the username is passed to the constructor."""

    password = PasswordField(
        "New password",
        [required],
        description=f"At least {MIN_PASSWORD} characters.",
        render_kw={"autocomplete": "new-password"},
    )

    def __init__(self, username: str, **kwargs: Any) -> None:
        self.known_username = username
        super().__init__(**kwargs)

    def validate_password(self, field: PasswordField) -> None:
        """Reject passwords that are easy to guess."""
        problem = password_problem(self.known_username, field.data or "")
        if problem:
            raise ValidationError(problem)


class ChangePasswordForm(NewPasswordForm):
    """A new password, confirmed with the current one."""

    current_password = PasswordField(
        "Current password", [required], render_kw={"autocomplete": "current-password"}
    )


class DeleteAccountForm(PostedForm):
    """The password again, so that a browser left open cannot delete the account."""

    your_password = PasswordField(
        "Your password", [required], render_kw={"autocomplete": "current-password"}
    )


TOKEN_DAYS = (7, 30, 90, 180, 365)
SCOPE_LABELS = {
    Scope.READ: "Read scans, results and reports",
    Scope.SUBMIT: "Submit scans; change, share and delete your own; choose notifications",
    Scope.REVIEW: "Give opinions and read the review queue",
    Scope.ADMIN: "Administer: models, data sets, training, users",
}


class TokenForm(PostedForm):
    """The purpose, scopes and validity of an API token, and the password again, so that a browser
    left open cannot be used to create one.
    """

    name = TextField(
        "Token name",
        [required, at_most(MAX_TOKEN_NAME)],
        description="What you will use the token for, such as “research script”.",
    )
    scopes = SelectMultipleField(
        "It may",
        option_widget=CheckboxInput(),
        default=[scope.value for scope in USUAL_SCOPES],
    )
    days = SelectField("It expires after", coerce=int)
    token_password = PasswordField(
        "Your password", [required], render_kw={"autocomplete": "current-password"}
    )

    def __init__(self, owner: User, **kwargs: Any) -> None:
        usual, most = usual_token_days(), current_app.config["TOKEN_MAX_DAYS"]
        super().__init__(**{"data": {"days": usual}, **kwargs})
        self.scopes.choices = [
            SelectChoice(scope.value, SCOPE_LABELS[scope]) for scope in scopes_open_to(owner)
        ]
        offered = {days for days in (*TOKEN_DAYS, usual) if days and (not most or days <= most)}
        self.days.choices = [
            *(SelectChoice(days, f"{days} days") for days in sorted(offered)),
            *([] if most else [SelectChoice(0, "Never")]),
        ]

    def validate_scopes(self, field: Field) -> None:
        # DataRequired would mark each checkbox as required, and browsers would insist on all.
        if not field.data:
            raise ValidationError("Please choose what the token may be used for.")


class SetUpFactorForm(PostedForm):
    """The password again, so that a browser left open cannot be used to set up a second factor."""

    factor_password = PasswordField(
        "Your password", [required], render_kw={"autocomplete": "current-password"}
    )


class CodeForm(PostedForm):
    """A code from the authenticator app, or a recovery code instead."""

    code = StringField(
        "Code",
        [required, at_most(MAX_CODE)],
        render_kw={
            "autocomplete": "one-time-code",
            "autocapitalize": "none",
            "spellcheck": "false",
            "autofocus": True,
        },
    )


class ChangeFactorForm(SetUpFactorForm):
    """Password and code: both are needed to change a second factor."""

    factor_code = StringField(
        "Code from your app, or a recovery code",
        [required, at_most(MAX_CODE)],
        render_kw={"autocomplete": "one-time-code", "autocapitalize": "none"},
    )


class LinesField(TextAreaField):
    """Text of several lines, stripped of surrounding white space, with Unix line breaks."""

    def process_formdata(self, valuelist: list[str]) -> None:
        super().process_formdata(
            [value.replace("\r\n", "\n").replace("\r", "\n").strip() for value in valuelist]
        )


class RegionField(HiddenField):
    """An ellipse as four numbers separated by commas, or nothing; its data is a mapping."""

    def process_formdata(self, valuelist: list[str]) -> None:
        self.data = None
        if not valuelist or not valuelist[0].strip():
            return
        parts = valuelist[0].split(",")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
            raise ValueError("The mark is not four numbers.")
        self.data = dict(zip(("x", "y", "rx", "ry"), numbers, strict=True))

    def _value(self) -> str:
        return ",".join(f"{self.data[name]:g}" for name in self.data) if self.data else ""


class OpinionForm(PostedForm):
    """An opinion on a scan, or on the slice whose number, counted from 1, is given."""

    finding = RadioField(
        "Hemorrhage",
        choices=[SelectChoice(finding.value, finding.value.capitalize()) for finding in Finding],
        validators=[DataRequired("Please choose whether hemorrhage is present.")],
        validate_choice=False,
    )
    slice = IntegerField("Slice", [Optional()])
    types = SelectMultipleField(
        "Type",
        choices=[SelectChoice(name, name.capitalize()) for name in BLEEDING_TYPES],
        option_widget=CheckboxInput(),
    )
    comment = LinesField(
        "Comment",
        [at_most(MAX_COMMENT)],
        description="Optional. Please do not enter patient names.",
        render_kw={"rows": 2},
    )
    region = RegionField()
    queue = HiddenField()

    def validate_finding(self, field: RadioField) -> None:
        """Reject values that are not findings."""
        if field.data not in list(Finding):
            raise ValidationError("Please choose whether hemorrhage is present.")


class ShareForm(PostedForm):
    """Whom to share a scan with: a user, by name, or the reviewers."""

    username = TextField(
        "Username",
        [at_most(MAX_USERNAME)],
        render_kw={"autocomplete": "off", "autocapitalize": "none"},
    )


SHARED = "shared"


class FilterForm(Form):
    """The filters of a page, from its address. A field with an error is not applied."""

    @property
    def chosen(self) -> dict[str, Any]:
        """Return the valid values that were given."""
        self.validate()
        return {
            name: field.data
            for name, field in self._fields.items()
            if field.data and not field.errors
        }


class WorklistFilterForm(FilterForm):
    """The filters of a worklist."""

    whose = SelectField(
        "Scans",
        choices=[SelectChoice("", "My scans"), SelectChoice(SHARED, "Shared with me")],
        default="",
    )
    submitter = TextField(
        "Submitter",
        [Optional(), at_most(MAX_USERNAME)],
        render_kw={"type": "search", "autocapitalize": "none"},
    )
    title = TextField("Title", [Optional(), at_most(MAX_TITLE)], render_kw={"type": "search"})
    status = SelectField(
        "Status",
        choices=[
            SelectChoice("", "Any"),
            SelectChoice(JobStatus.QUEUED.value, "Waiting"),
            SelectChoice(JobStatus.RUNNING.value, "Analyzing"),
            SelectChoice(JobStatus.DONE.value, "Done"),
            SelectChoice(JobStatus.FAILED.value, "Failed"),
            SelectChoice(JobStatus.CANCELLED.value, "Canceled"),
        ],
        default="",
    )
    verdict = SelectField(
        "Hemorrhage",
        choices=[
            SelectChoice("", "Any"),
            *(SelectChoice(state, state.capitalize()) for state in STATES),
        ],
        default="",
    )
    priority = SelectField(
        "Priority",
        choices=[
            SelectChoice("", "Any"),
            SelectChoice("stat", "STAT"),
            SelectChoice("routine", "Routine"),
        ],
        default="",
    )
    since = DateField("From (UTC)", [Optional()])
    until = DateField("To (UTC)", [Optional()])
    study = TextField("Study", [Optional(), Regexp(ID, message="There is no such study.")])


class NotificationsForm(PostedForm):
    """Which results a user wants to be notified of, for each available channel."""

    browser = SelectField("In this browser, while a page is open")
    email = SelectField("By email", description="To the address of your account.")
    chat = SelectField("In the chat", description="All users’ messages go to the same chat.")
    webhook = SelectField("By webhook", description="To the service that your operator set up.")

    def __init__(self, offered: Collection[Channel], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels: list[SelectField] = []
        for channel in Channel:
            if channel not in offered:
                del self[channel.value]
                continue
            self[channel.value].choices = [
                SelectChoice(Wanted.NONE.value, "Nothing"),
                SelectChoice(Wanted.SUSPICIOUS.value, "Suspected and inconclusive results"),
                SelectChoice(Wanted.STAT.value, "Results of STAT scans"),
                SelectChoice(Wanted.ALL.value, "All results"),
            ]
            self.channels.append(self[channel.value])
