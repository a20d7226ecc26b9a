"""The PDF of a report: one page, whatever it has to tell."""

from __future__ import annotations

import logging

import pytest

from tests.worker.reports.made import AT, content
from tests.worker.reports.readers import text_of
from worker.reports.content import OpinionText, Verdict
from worker.reports.page import pdf_of


def test_a_report_tells_the_verdict_its_scale_the_model_and_the_limits() -> None:
    text = text_of(pdf_of(content(), AT))

    for phrase in (
        "Hemorrhage suspected",
        "Brain Hemorrhage Detected.",
        "Probability of hemorrhage 87.3%, threshold 51.2%.",
        "threshold 51.2%, inconclusive from 37.4% to 51.2%",
        "Slice 3 of 4, brain window (level 40, width 80)",
        "Slices to look at first: 3 (87%), 4 (40%)",
        "GoogLeNet cells for series · v3, card db3650e237e8",
        "Possible type: subarachnoid 61%",
        "Research use only, never a diagnosis.",
        "not a medical device",
        "Created 2026-11-29 14:05 UTC",
    ):
        assert phrase in text, phrase


@pytest.mark.parametrize(("file_type", "says_where"), [("dicom", True), ("jpeg", False)])
def test_a_report_says_where_foot_and_head_are_only_where_files_tell(
    file_type: str, says_where: bool
) -> None:
    text = text_of(pdf_of(content(file_type=file_type), AT))

    assert ("head: slice 4" in text, "foot: slice 1" in text) == (says_where, says_where)
    assert "slice 4" in text


@pytest.mark.parametrize(
    ("verdict", "phrase"),
    [
        (
            Verdict("inconclusive", "No Brain Hemorrhage Detected.", 0.5, 0.512, None),
            "rely on “No Brain Hemorrhage Detected.”",
        ),
        (Verdict("not found", "No Brain Hemorrhage Detected.", 0.0, 0.0, (0, 0)), "not found"),
        (Verdict("suspected", "Brain Hemorrhage Detected.", 1.0, 1.0, (0, 1)), "suspected"),
    ],
)
def test_a_report_of_a_picture_without_heat_map_has_any_state(
    verdict: Verdict, phrase: str
) -> None:
    picture = content(
        verdict=verdict, file_type="png", slices=[verdict.probability], first_slices=[],
        index=0, overlay=None,
    )  # fmt: skip
    text = text_of(pdf_of(picture, AT))

    assert phrase in text and "as submitted" in text
    assert "Slices to look at first" not in text


@pytest.mark.parametrize(
    ("title", "drawn"),
    [
        ("🧠 Trauma 👩‍⚕️ night סריקת ראש فحص الرأس 頭部CT", ("Trauma", "□□")),
        ("\u200d\ufffe\u0301<b>&amp;</b> **bold** \\n", ("<b>&amp;</b> **bold**",)),
        ("\u202e\u2067 an override of the direction", ()),
        ("W" * 80, ("WWW",)),
    ],
)
def test_any_title_is_drawn_and_quoted_in_no_log(
    title: str, drawn: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        text = text_of(pdf_of(content(title=title), AT))

    assert all(part in text for part in drawn)
    assert caplog.records == []


def test_letters_from_right_to_left_and_emoji_change_what_is_drawn() -> None:
    plain, hebrew, emoji = (len(pdf_of(content(title=title), AT)) for title in ("abc", "אבג", "🧠"))

    assert plain < hebrew and plain < emoji  # Their glyphs are embedded.


def test_a_thousand_slices_notes_and_opinions_leave_one_page() -> None:
    opinions = [OpinionText(f"Reader {n}", "disagrees", "x " * 400, AT) for n in range(30)]
    long = content(
        title="long " * 16,
        slices=[0.5] * 1000,
        first_slices=[999, 0, 500, 1, 2],
        index=999,
        types=[(f"type {n}", 0.5) for n in range(9)],
        warnings=["A warning that goes on. " * 30] * 3,
        notes=["A note that goes on. " * 30] * 50,
        opinions=opinions,
    )
    text = text_of(pdf_of(long, AT))

    assert "50 more notes are on the scan’s page." in text
    assert "Reader 0" in text and "26 more on the scan’s page." in text
    assert "not a medical device" in text
