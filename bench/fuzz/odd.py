"""Odd values of every type that requests, forms and queries put where something else belongs."""

from __future__ import annotations

import random
from urllib.parse import quote

MARKUP = "<script>alert(1)</script>"
NUMBERS = (
    *("0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "-0", "1_000", "0x10", "+1", " 1 "),
    *("9" * 30, str(2**31), str(2**63), str(-(2**63) - 1), "9" * 5_000, "0" * 400 + "1", "1e-400"),
    *("²", "٣", "１２", "1,5", "1;2", "1/0"),
)
"""Some consist of digits that `str.isdigit` knows and `int` does not, or the other way round."""
DATES = (
    *("0000-00-00", "0001-01-01", "9999-12-31", "10000-01-01", "2026-02-30", "-2026-01-01"),
    *("2026-11-30T25:61:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    *("20261130-20260101", "2026-W53-7", "1970-01-01 00:00", "2026-11-30T12:00"),
)
TEXTS = (
    *(
        "",
        " ",
        "text",
        "123456",
        "\0",
        "a\0b",
        "\x1b[31m",
        "a\r\nb: c",
        "\u202ea",
        "\ufeff",
        "é" * 90,
    ),
    *(
        MARKUP,
        "'\"><img src=x>",
        "{{ 7 * 7 }}",
        "=1+1",
        "%",
        "_",
        "\\",
        "*",
        "[",
        "../../etc/passwd",
    ),
    *(
        "x" * 10_000,
        "x" * 200_000,
        "a,b",
        ",".join("1" * 1_500),
        "0" * 32,
        "f" * 32,
        "null",
        "true",
        "on",
        "[]",
        "{}",
    ),
)
BYTES = (b"\xed\xa0\x80", b"\xff", b"\0", b"\xf0\x9f", b"\xc0\x80", b"\xfe\xff\0a")
"""Not UTF-8: lone surrogates, unfinished and overlong sequences."""
OBJECTS: tuple[object, ...] = (
    *(0, -1, 1.5, 10**30, -(2**63) - 1, 1e308, True, None, float("nan"), float("inf")),
    *([], ["a", "b"], [1], [[]], [None], ["\0"], {"a": 1}, {"a": []}, {}),
    *("text", "\0", "\ud800", "x" * 10_000, "2026-02-30", "0001-01-01T00:00:00+23:59"),
)
"""Values of JSON."""


def odd_text(rng: random.Random) -> str:
    """Return a text that is a number, a date, or neither."""
    return rng.choice(rng.choice((NUMBERS, DATES, TEXTS)))


def quoted(rng: random.Random, *, usual: str = "") -> str:
    """Return an odd value as a part of a URL or of a form's body; one in five is not UTF-8.

    Args:
        usual: a value that is returned half of the time, if there is one.
    """
    if usual and rng.random() < 0.5:
        return quote(usual, safe="")
    if rng.random() < 0.2:
        return quote(rng.choice(BYTES), safe="")
    return quote(odd_text(rng)[:8_000], safe="")
