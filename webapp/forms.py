"""The forms of accounts and scans, and the checks of text that other rooms share."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from flask import request
from flask_wtf import FlaskForm
from flask_wtf.file import FileRequired, MultipleFileField
from werkzeug.datastructures import CombinedMultiDict, FileStorage, MultiDict
from wtforms import BooleanField, FileField, Form, HiddenField, PasswordField, StringField
from wtforms.validators import DataRequired, Email, Length, Optional, Regexp, ValidationError

from webapp.passwords import MIN_PASSWORD, password_problem

MAX_USERNAME, MAX_NAME, MAX_EMAIL, MAX_PHONE, MAX_TITLE, MAX_TOKEN_NAME = 64, 120, 254, 40, 80, 80

required = DataRequired("Please fill in this field.")


def is_id(text: str) -> bool:
    """True if `text` has the form of a row's id. Anything else is never asked of the database:
    PostgreSQL refuses a NUL.
    """
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def text_problem(text: str, longest: int) -> str | None:
    """Return why `text` cannot be stored as a line of at most `longest` characters, as a sentence,
    or None.
    """
    if len(text) > longest:
        return f"Please use at most {longest} characters."
    # PostgreSQL refuses a NUL.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "Please use printable characters only."
    return None


def username_problem(username: str) -> str | None:
    """Return why nobody can have this username, as a sentence, or None."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{1,{MAX_USERNAME - 1}}}", username):
        return (
            f"A username has 2 to {MAX_USERNAME} letters, digits, dots, dashes or underscores and"
            " begins with a letter or digit."
        )
    return None


def at_most(characters: int) -> Length:
    """Return a validator for the longest text; browsers are told too."""
    return Length(max=characters, message=f"Please use at most {characters} characters.")


_posted = object()
"""Stands for what the request carries, where a form is given nothing else."""


class TextField(StringField):
    """A line of text, stripped; control characters are refused."""

    def process_formdata(self, valuelist: list[str]) -> None:
        super().process_formdata([value.strip() for value in valuelist])

    def pre_validate(self, form: Form) -> None:
        problem = text_problem(self.data or "", longest=10_000)
        if problem:
            raise ValidationError(problem)


class PostedForm(FlaskForm):
    """A form as browsers post it: text comes from its text parts and files from its file parts.

    Flask-WTF alone would also fill a text field with a file of that name, or with any value of a
    JSON body, which no validator expects and which the throttles do not look at.
    """

    class Meta(FlaskForm.Meta):  # type: ignore[misc]
        """How what was posted reaches the fields."""

        def wrap_formdata(self, form: Form, formdata: Any) -> MultiDict[str, Any] | None:
            """Return for each field of `form` the values of its type; None where nothing came."""
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
    """What a new person tells of themselves."""

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
        description=f"At least {MIN_PASSWORD} characters; a few words in a row are best.",
        render_kw={"autocomplete": "new-password"},
    )

    def validate_username(self, field: StringField) -> None:
        """Refuse a username that nobody can have."""
        problem = username_problem(field.data or "")
        if problem:
            raise ValidationError(problem)

    def validate_password(self, field: PasswordField) -> None:
        """Refuse a password that is easily guessed."""
        problem = password_problem(self.username.data or "", field.data or "")
        if problem:
            raise ValidationError(problem)


class LoginForm(PostedForm):
    """Who is there. Its lengths are not told apart from a wrong password: the answer is always the
    same.
    """

    username = StringField(
        "Username",
        [required],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "autofocus": True},
    )
    password = PasswordField("Password", [required], render_kw={"autocomplete": "current-password"})
    next = HiddenField()


class NewPasswordForm(PostedForm):
    """A new password for the person whose username is given to the constructor."""

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
        """Refuse a password that is easily guessed."""
        problem = password_problem(self.known_username, field.data or "")
        if problem:
            raise ValidationError(problem)


class ChangePasswordForm(NewPasswordForm):
    """A new password, by somebody who knows the current one."""

    current_password = PasswordField(
        "Current password", [required], render_kw={"autocomplete": "current-password"}
    )


class DeleteAccountForm(PostedForm):
    """The password once more, so that a browser left open deletes nothing."""

    your_password = PasswordField(
        "Your password", [required], render_kw={"autocomplete": "current-password"}
    )


class TokenForm(PostedForm):
    """What an API token is for, and the password once more: a browser left open makes none."""

    name = TextField(
        "Name of the token",
        [required, at_most(MAX_TOKEN_NAME)],
        description="What the token is for, such as “research script”.",
    )
    token_password = PasswordField(
        "Your password", [required], render_kw={"autocomplete": "current-password"}
    )


class ScanForm(PostedForm):
    """The scans that a person submits."""

    # No `accept`: files of a DICOM series often have no ending.
    file = MultipleFileField(
        "Files",
        [FileRequired("Please choose a PNG, JPEG, DICOM, NIfTI or ZIP file.")],
        description=(
            "A slice as PNG, JPEG or DICOM; a series as DICOM files, NIfTI or a ZIP of slices. Each"
            " series becomes one scan."
        ),
    )
    title = TextField(
        "Title",
        [Optional(), at_most(MAX_TITLE)],
        description="Optional. Please do not enter patient names.",
    )
    together = BooleanField(
        "The images are slices of one scan",
        description="Otherwise each PNG or JPEG becomes a separate scan.",
    )
    stat = BooleanField("STAT", description="Analyze before all routine scans.")
    keep_names = BooleanField(
        "Keep file names",
        description=(
            "As title and in messages. They may name a patient; without this they are forgotten."
        ),
    )


class PhantomForm(PostedForm):
    """The phantom that a person tries."""

    name = HiddenField(validators=[required])
