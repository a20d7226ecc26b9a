"""Which passwords are refused."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.conftest import PASSWORD
from webapp.accounts.passwords import MIN_PASSWORD, common_passwords, password_problem

GUESSED_FIRST = "This password is too common and easy to guess."


@pytest.mark.parametrize(
    "password",
    [
        "1234567890",
        "q1w2e3r4t5",
        "PasswordPassword",
        "password1234",
        "Welcome2026!",
        "...Sunshine!1999",
        "HemoScan-2026",
        "123hospital!!",
    ],
)
def test_what_many_choose_is_refused_whatever_digits_and_signs_stand_around_it(
    password: str,
) -> None:
    problem = password_problem("ann", password)
    assert problem is not None and problem.startswith(GUESSED_FIRST)


@pytest.mark.parametrize("password", ["anna.lee-1990", "1234Anna.Lee", "ANNA.LEE!!"])
def test_the_username_with_digits_and_signs_is_refused(password: str) -> None:
    assert password_problem("anna.lee", password) == "The password must differ from the username."


@pytest.mark.parametrize("password", ["1212121212", "eeeeeeeeeeee", "zxzxzxzxzxzx"])
def test_a_few_characters_over_and_over_are_refused(password: str) -> None:
    assert (
        password_problem("ann", password)
        == "This password uses too few different characters. Please choose another."
    )


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "correct horse battery",
        "sunshine over hospital",
        "Straße nach Süden",
        "7261940358",
        "x" * 30 + "yz!",
        "t8#Lq.w2Zk",
    ],
)
def test_nothing_else_is_asked_of_a_password(password: str) -> None:
    assert password_problem("ann", password) is None


def test_the_list_is_in_the_form_that_passwords_are_compared_in() -> None:
    known = common_passwords()
    assert len(known) > 20_000
    assert sum(len(password) >= MIN_PASSWORD for password in known) > 2_500
    assert all(password == password.strip().lower() for password in known)


def test_a_common_password_is_refused_when_signing_up(app: Flask) -> None:
    person = {
        "username": "ann",
        "name": "Ann",
        "email": "ann@example.org",
        "password": "Password1234",
    }
    answer = app.test_client().post("/signup", data=person)
    assert answer.status_code == 400
    assert GUESSED_FIRST in answer.text
