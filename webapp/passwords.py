"""Which passwords are refused: too short, too long, or easy to guess."""

from __future__ import annotations

from functools import cache
from pathlib import Path

MIN_PASSWORD, MAX_PASSWORD = 10, 200
COMMON = Path(__file__).with_name("common_passwords.txt")
EXPECTED_WORDS = ("hemoscan", "hemorrhage", "haemorrhage", "radiology", "hospital")
"""Words that suggest themselves on this service, besides the username."""
FEWEST_CHARACTERS = 4
"""Minimum number of different characters: "1212121212" is long but has only two."""
SHORTEST_WORD = 4
"""A password without its digits and punctuation counts as a word from this length on."""


def password_problem(username: str, password: str) -> str | None:
    """Return why this password is refused, as a sentence, or None.

    Nothing is asked of its characters. A common password or an expected word is refused with digits
    and signs around it too, since that is what people add first.
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
    """Return `text` in lower case without the digits and signs at its ends; empty if that is no
    word.
    """
    letters = [place for place, character in enumerate(text) if character.isalpha()]
    word = text[letters[0] : letters[-1] + 1].lower() if letters else ""
    return word if len(word) >= SHORTEST_WORD else ""


@cache
def common_passwords() -> frozenset[str]:
    """Return the common passwords, in lower case; the file says where they come from."""
    lines = COMMON.read_text("ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
