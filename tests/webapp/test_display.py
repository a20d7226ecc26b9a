"""Names and numbers as pages show them, and templates that leave the computing to Python."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2.nodes
import pytest
from flask import Flask

from webapp.config import PROJECT_ROOT
from webapp.display import (
    display_name,
    display_term,
    duration,
    excerpt,
    number,
    number_word,
    percent,
    points,
    signed,
    value_range,
)
from webapp.models import JobStatus, Order
from webapp.paging import PageNumbers, requested_page

ARITHMETIC = (
    jinja2.nodes.Add,
    jinja2.nodes.Sub,
    jinja2.nodes.Mul,
    jinja2.nodes.Div,
    jinja2.nodes.FloorDiv,
    jinja2.nodes.Mod,
    jinja2.nodes.Pow,
)


def test_a_name_that_is_not_in_the_mapping_is_capitalized() -> None:
    assert display_name("window_level") == "Window level (HU)"
    assert display_name("target_sensitivity") == "Target sensitivity"


def test_every_order_of_the_worklist_has_a_name() -> None:
    assert [display_name(order) for order in Order] == [
        "Newest first",
        "Highest risk first",
        "Most uncertain first",
    ]


def test_states_are_spelled_as_americans_do() -> None:
    assert [display_term(status) for status in JobStatus] == [
        "queued",
        "running",
        "done",
        "failed",
        "canceled",
    ]


def test_numbers_have_their_digits_and_none_is_a_dash() -> None:
    assert (number(0.12345), number(2, 1), number(None)) == ("0.123", "2.0", "–")
    assert (percent(0.9731), percent(0.5, 0), percent(None)) == ("97.3%", "50%", "–")
    nearly = (percent(0.0004), percent(0.9996), percent(0.004, 0), percent(0.996, 0))
    assert nearly == ("<0.1%", ">99.9%", "<1%", ">99%")
    exact = (percent(0.0), percent(1.0, 0), percent(0.001), percent(0.999), percent(0.99, 0))
    assert exact == ("0.0%", "100%", "0.1%", "99.9%", "99%")
    assert (signed(0.012), signed(-0.02)) == ("+0.012", "−0.020")
    assert (points(0.012), points(-0.021)) == ("+1.2", "−2.1")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (7000, "1.9 h")],
)
def test_a_duration_has_the_unit_that_is_easiest_to_read(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_range_of_one_value_is_that_value() -> None:
    assert value_range({"min": 1, "median": 2.5, "max": 4}) == "1–4, median 2.5"
    assert value_range({"min": 192, "median": 192.0, "max": 192}, " px") == "192 px"


def test_small_numbers_are_words() -> None:
    assert (number_word(5), number_word(12)) == ("five", "12")


def test_an_excerpt_says_how_much_is_left_out() -> None:
    assert (excerpt([1, 2, 3], 2).shown, excerpt([1, 2, 3], 2).left_out) == ([1, 2], 1)
    assert excerpt([1], 2).left_out == 0


@pytest.mark.parametrize(
    ("query", "number_of_page"),
    [("", 1), ("page=2", 2), ("page=99", 3), ("page=0", 1), ("page=-1", 1), ("page=x", 1)],
)
def test_a_page_that_does_not_exist_is_the_nearest_one(
    app: Flask, query: str, number_of_page: int
) -> None:
    with app.test_request_context(f"/?{query}"):
        assert requested_page(total=41, per_page=20) == PageNumbers(number_of_page, 3)


def test_a_page_knows_its_neighbors() -> None:
    assert [(page.previous, page.next) for page in (PageNumbers(1, 2), PageNumbers(2, 2))] == [
        (None, 2),
        (1, None),
    ]


def test_no_template_computes(app: Flask) -> None:
    templates = app.jinja_env.list_templates(extensions=["html"])
    assert "scans/_viewer.html" in templates
    computing = {
        name
        for name in templates
        for _ in app.jinja_env.parse(
            app.jinja_env.loader.get_source(app.jinja_env, name)[0]
        ).find_all(ARITHMETIC)
    }
    assert not computing


@pytest.mark.parametrize(
    "path",
    sorted((PROJECT_ROOT / "webapp" / "templates").rglob("*.html")),
    ids=lambda path: path.stem,
)
def test_what_a_template_opens_it_closes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for tag in ("section", "div", "details", "form", "table", "ul", "dl", "figure", "p"):
        opened, closed = len(re.findall(rf"<{tag}[\s>]", text)), text.count(f"</{tag}>")
        assert opened == closed, tag
