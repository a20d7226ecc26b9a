"""The rules for refusing passwords: too short, too long, or easy to guess."""

from __future__ import annotations

from functools import cache
from pathlib import Path

MIN_PASSWORD, MAX_PASSWORD = 10, 200
COMMON = Path(__file__).with_name("common_passwords.txt")
EXPECTED_WORDS = ("hemoscan", "hemorrhage", "haemorrhage", "radiology", "hospital")
"""Words that are obvious guesses for this service, besides the username."""
FEWEST_CHARACTERS = 4
"""Minimum number of different characters: "1212121212" is long but has only two."""
SHORTEST_WORD = 4
"""Without its digits and punctuation, a password of at least this length counts as a word."""


def password_problem(username: str, password: str) -> str | None:
    """Return why this password is refused, as a sentence, or None.

    There are no rules about character classes. A common password or an obvious word is refused with
    digits and punctuation around it too, because that is what people add first.
    """
    if len(password) < MIN_PASSWORD:
        return f"Passwords must have at least {MIN_PASSWORD} characters."
    if len(password) > MAX_PASSWORD:
        return f"Passwords must have at most {MAX_PASSWORD} characters."
    whole, word, person = password.lower(), core(password), core(username)
    if whole == username.lower() or (person and word == person):
        return "The password must differ from the username."
    if len(set(whole)) < FEWEST_CHARACTERS:
        return "This password uses too few different characters. Please choose another."
    if whole in common_passwords() or word in common_passwords() or word in EXPECTED_WORDS:
        return "This password is too common and easy to guess. A few unrelated words are better."
    return None


def core(text: str) -> str:
    """Return `text` in lower case without the digits and punctuation at its ends; empty if the rest
    is not a word.
    """
    letters = [place for place, character in enumerate(text) if character.isalpha()]
    word = text[letters[0] : letters[-1] + 1].lower() if letters else ""
    return word if len(word) >= SHORTEST_WORD else ""


@cache
def common_passwords() -> frozenset[str]:
    """Return the common passwords, in lower case; the file states its source."""
    lines = COMMON.read_text("ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
