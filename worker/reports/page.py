"""The report of a scan as a PDF of one page (A4), to print or to send."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fpdf import FPDF, XPos, YPos
from PIL import Image

from ml.verdict import State
from webapp.display import STATE_TITLES, display_term, percent
from worker.reports.content import LIMITS, RESEARCH, Content, OpinionText, Verdict
from worker.reports.fonts import BOLD, EMOJI, REGULAR

# fpdf2 warns of characters that no font has, and quotes them; titles must not appear in logs.
logging.getLogger("fpdf").setLevel(logging.ERROR)
logging.getLogger("fontTools").setLevel(logging.ERROR)

SANS, NOTO_EMOJI = "DejaVu Sans", "Noto Emoji"
MISSING = "□"
"""Replaces a character that no font has, such as a Chinese one."""

Color = tuple[int, int, int]
INK: Color = (22, 35, 43)
WHITE: Color = (255, 255, 255)
SOFT: Color = (75, 93, 104)
LINE: Color = (213, 221, 226)
RED: Color = (163, 32, 27)
COLOR_OF: dict[State, Color] = {
    "suspected": RED,
    "inconclusive": (154, 97, 0),
    "not found": (23, 99, 58),
}
AMBER_GROUND: Color = (255, 224, 150)
HU_TYPES = ("dicom", "nifti")
"""Files whose slices are in Hounsfield units, and in radiological orientation."""

WIDTH_MM, HEIGHT_MM, MARGIN_MM = 210.0, 297.0, 15.0
ROOM_MM = WIDTH_MM - 2 * MARGIN_MM
GAP_MM = 4.0
COLUMN_MM = (ROOM_MM - GAP_MM) / 2
PICTURE_MM = 79.0
FOOT_MM = 33.0
"""The space that the limitations need at the bottom of the page."""
MOST_SENTENCES, MOST_OPINIONS, MOST_TYPES = 4, 4, 4


def pdf_of(content: Content, made_at: datetime) -> bytes:
    """Return the report as a PDF file.

    Args:
        made_at: UTC, printed on the page.
    """
    page = _Page(content, made_at)
    page.draw_head(content)
    page.draw_verdict(content.verdict)
    page.draw_scale(content.verdict)
    page.draw_pictures(content)
    if len(content.slices) > 1:
        page.draw_slices(content)
    page.draw_facts(content)
    page.draw_opinions(content.opinions)
    page.draw_foot(content, made_at)
    return bytes(page.output())


@dataclass(frozen=True)
class Style:
    """The style of a paragraph: its size in points, and its maximum number of lines; the rest is
    cut off with “…”.
    """

    size: float
    color: Color = INK
    is_bold: bool = False
    most_lines: int = 1
    align: str = "L"


class _Page(FPDF):
    """The page, drawn from top to bottom."""

    def __init__(self, content: Content, made_at: datetime) -> None:
        super().__init__(format="A4")
        self.set_margin(MARGIN_MM)
        self.c_margin = 0.0
        self.set_auto_page_break(False)
        self.add_font(SANS, "", REGULAR)
        self.add_font(SANS, "B", BOLD)
        self.add_font(NOTO_EMOJI, "", EMOJI)
        # Arabic letters are joined, and right-to-left text is reordered.
        self.set_text_shaping(True)
        self.set_fallback_fonts([NOTO_EMOJI], exact_match=False)
        fonts: Any = self.fonts.values()  # All of them are TrueType.
        self.drawable: frozenset[int] = frozenset().union(*(font.cmap for font in fonts))
        self.set_lang("en-US")
        self.set_title(f"Hemoscan report of scan {content.scan_id}")
        self.set_creator(content.software)
        self.set_creation_date(made_at)
        self.add_page()

    def write_line(self, text: str, style: Style) -> None:
        """Write a paragraph over the whole width."""
        self.write_at(MARGIN_MM, self.get_y(), ROOM_MM, text, style)

    def write_at(self, x: float, y: float, width: float, text: str, style: Style) -> None:
        """Write a paragraph `width` mm wide at a position; the next one begins below it."""
        text = "".join(character if self._is_drawable(character) else MISSING for character in text)
        self.set_xy(x, y)
        self.set_font(SANS, "B" if style.is_bold else "", style.size)
        self.set_text_color(*style.color)
        height, most = style.size * 0.47, style.most_lines
        ways: dict[str, Any] = {"new_x": XPos.LMARGIN, "new_y": YPos.NEXT, "align": style.align}
        lines: Any = self.multi_cell(width, height, text, dry_run=True, output="LINES", **ways)
        if len(lines) > most:
            text = "\n".join([*lines[: most - 1], lines[most - 1].rstrip()[:-3] + "…"])
        self.multi_cell(width, height, text, **ways)

    def _is_drawable(self, character: str) -> bool:
        """Return whether a font has the character, or the character is not drawn but modifies
        others.
        """
        return ord(character) in self.drawable or unicodedata.category(character) in ("Cf", "Mn")

    def draw_head(self, content: Content) -> None:
        """Draw the title of the report and of its scan."""
        self.set_y(12)
        top = self.get_y()
        self.write_at(MARGIN_MM, top, ROOM_MM, "Hemoscan", Style(15, is_bold=True))
        self.write_at(
            MARGIN_MM, top + 1.2, ROOM_MM, RESEARCH, Style(9, RED, is_bold=True, align="R")
        )
        self.set_y(top + 8)
        self.write_line(content.title or "Untitled scan", Style(12, is_bold=True, most_lines=2))
        slices = len(content.slices)
        what = display_term(content.file_type)
        facts = (
            f"{what}, {slices} {'slice' if slices == 1 else 'slices'}",
            f"submitted {_time(content.submitted_at)}",
            f"analyzed {_time(content.finished_at)}",
            f"scan {content.scan_id}",
        )
        self.write_line(" · ".join(facts), Style(7.5, SOFT))
        self.ln(2.5)

    def draw_verdict(self, verdict: Verdict) -> None:
        """Draw the sentence, the state and the figures, with a bar in the color of the state."""
        top, color = self.get_y(), COLOR_OF[verdict.state]
        self.set_fill_color(*color)
        self.rect(MARGIN_MM, top, 2, 19, style="F")
        left, width = MARGIN_MM + 5, ROOM_MM - 5
        title, sentence = verdict.sentence, f"{STATE_TITLES[verdict.state]}."
        if verdict.state == "inconclusive":
            title = f"{sentence} Please have this scan read."
            side = "above" if verdict.probability >= verdict.threshold else "below"
            sentence = f"Not far enough {side} the threshold to rely on “{verdict.sentence}”"
        self.write_at(left, top, width, title, Style(17, color, is_bold=True))
        self.write_at(left, top + 8.5, width, sentence, Style(10))
        figures = (
            f"Probability of hemorrhage {percent(verdict.probability)}, threshold"
            f" {percent(verdict.threshold)}."
        )
        self.write_at(left, top + 14, width, figures, Style(10, is_bold=True))
        self.set_y(top + 22)

    def draw_scale(self, verdict: Verdict) -> None:
        """Draw probabilities from 0 to 100%, with the inconclusive band, the threshold and this
        scan's mark.
        """
        top, height = self.get_y() + 5.5, 4.0

        def at(probability: float) -> float:
            return MARGIN_MM + ROOM_MM * probability

        low, high = verdict.band or (verdict.threshold, verdict.threshold)
        for start, stop, color in (
            (0.0, low, (205, 231, 214)),
            (low, high, AMBER_GROUND),
            (high, 1.0, (247, 208, 205)),
        ):
            self.set_fill_color(*color)
            self.rect(at(start), top, at(stop) - at(start), height, style="F")
        self.set_draw_color(*INK)
        self.set_line_width(0.35)
        self.line(at(verdict.threshold), top - 1, at(verdict.threshold), top + height + 1)
        mark = at(verdict.probability)
        self.set_fill_color(*COLOR_OF[verdict.state])
        self.polygon(((mark, top + 0.6), (mark - 2, top - 3), (mark + 2, top - 3)), style="F")
        beside = mark + 3 if verdict.probability < 0.8 else mark - 33
        self.write_at(
            beside,
            top - 4.1,
            30,
            f"this scan {percent(verdict.probability)}",
            Style(
                7.5,
                COLOR_OF[verdict.state],
                is_bold=True,
                align="L" if verdict.probability < 0.8 else "R",
            ),
        )
        below = top + height + 1.2
        self.write_at(MARGIN_MM, below, 20, "0%", Style(7, SOFT))
        self.write_at(MARGIN_MM + ROOM_MM - 20, below, 20, "100%", Style(7, SOFT, align="R"))
        caption = f"threshold {percent(verdict.threshold)}"
        if verdict.band is not None and low < high:
            caption += f", inconclusive from {percent(low)} to {percent(high)}"
        middle = min(max(at(verdict.threshold), MARGIN_MM + 60), MARGIN_MM + ROOM_MM - 60)
        self.write_at(middle - 45, below, 90, caption, Style(7, SOFT, align="C"))
        self.set_y(below + 5.5)

    def draw_pictures(self, content: Content) -> None:
        """Draw the slice, and the slice with its heat map next to it, on black."""
        slices = len(content.slices)
        has_hu = content.file_type in HU_TYPES
        which = "The slice" if slices == 1 else f"Slice {content.index + 1} of {slices}"
        window = ", brain window (level 40, width 80)" if has_hu else ", as submitted"
        shown = [(content.image.convert("L"), which + window)]
        if content.overlay is not None:
            shown.append((content.overlaid, content.overlay_says))
        top, side = self.get_y(), PICTURE_MM
        used = len(shown) * side + (len(shown) - 1) * GAP_MM
        left = MARGIN_MM + (ROOM_MM - used) / 2
        for picture, caption in shown:
            self.set_fill_color(0, 0, 0)
            self.rect(left, top, side, side, style="F")
            self._draw_picture(picture, left, top, side)
            if has_hu:
                self.write_at(left + 2, top + side / 2 - 2, 6, "R", Style(9, WHITE, is_bold=True))
                self.write_at(
                    left + side - 8,
                    top + side / 2 - 2,
                    6,
                    "L",
                    Style(9, WHITE, is_bold=True, align="R"),
                )
            self.write_at(left, top + side + 0.8, side, caption, Style(7, SOFT))
            left += side + GAP_MM
        self.set_y(top + side + 6)

    def _draw_picture(self, picture: Image.Image, x: float, y: float, side: float) -> None:
        scale = side / max(picture.size)
        width, height = picture.width * scale, picture.height * scale
        self.image(picture, x + (side - width) / 2, y + (side - height) / 2, width, height)

    def draw_slices(self, content: Content) -> None:
        """Draw a bar for each slice, and state which to look at first, and which ends are inferior
        and superior, which the images do not show.
        """
        foot, head = ("foot: ", "head: ") if content.file_type in HU_TYPES else ("", "")
        top, height = self.get_y(), 11.0
        each = ROOM_MM / len(content.slices)
        self.set_fill_color(237, 242, 244)
        self.rect(MARGIN_MM, top, ROOM_MM, height, style="F")
        for index, probability in enumerate(content.slices):
            self.set_fill_color(*(INK if index in content.first_slices else (139, 166, 178)))
            tall = height * probability
            self.rect(
                MARGIN_MM + index * each, top + height - tall, max(each * 0.9, 0.1), tall, style="F"
            )
        self.write_at(MARGIN_MM, top + height + 0.6, 60, f"{foot}slice 1", Style(7, SOFT))
        self.write_at(
            MARGIN_MM + ROOM_MM - 60,
            top + height + 0.6,
            60,
            f"{head}slice {len(content.slices)}",
            Style(7, SOFT, align="R"),
        )
        numbers = ", ".join(
            f"{index + 1} ({percent(content.slices[index], 0)})"
            for index in content.first_slices
            if index < len(content.slices)
        )
        if numbers:
            self.write_line(f"Slices to look at first: {numbers}", Style(8, is_bold=True))
        self.ln(2.5)

    def draw_facts(self, content: Content) -> None:
        """Draw the model's other findings and its name on the left, notes on the right."""
        top = self.get_y()
        findings = [
            *filter(None, [content.volume_sentence]),
            *(
                f"Possible type: {name} {percent(probability, 0)}"
                for name, probability in self._types(content)
            ),
        ]
        if findings:
            self._write_block(MARGIN_MM, top, "Model findings", findings)
            self.ln(1.5)
        self._write_block(
            MARGIN_MM,
            self.get_y(),
            "Model",
            [
                f"{content.model}, card {content.model_card}",
                f"Version {content.model_version}",
                content.software,
            ],
        )
        left_end = self.get_y()
        sentences = [*content.warnings, *content.notes]
        if len(sentences) > MOST_SENTENCES:
            more = len(sentences) - MOST_SENTENCES + 1
            sentences = [
                *sentences[: MOST_SENTENCES - 1],
                f"{more} more notes are on the scan’s page.",
            ]
        self._write_block(
            MARGIN_MM + COLUMN_MM + GAP_MM, top, "Notes", sentences or ["None."], most=2
        )
        self.set_y(max(left_end, self.get_y()) + 1.5)

    @staticmethod
    def _types(content: Content) -> Sequence[tuple[str, float]]:
        """Return the types to name; without a suspected hemorrhage, none is likely."""
        return () if content.verdict.state == "not found" else content.types[:MOST_TYPES]

    def draw_opinions(self, opinions: Sequence[OpinionText]) -> None:
        """Draw people's opinions on the scan, newest first."""
        if not opinions:
            return
        lines = [
            f"{opinion.name}, {_time(opinion.at)}: {opinion.verdict}"
            + (f". {opinion.comment}" if opinion.comment else "")
            for opinion in sorted(opinions, key=lambda opinion: opinion.at, reverse=True)[
                :MOST_OPINIONS
            ]
        ]
        if (more := len(opinions) - MOST_OPINIONS) > 0:
            lines.append(f"{more} more on the scan’s page.")
        self._write_block(MARGIN_MM, self.get_y(), "Opinions", lines, width=ROOM_MM)

    def _write_block(
        self,
        x: float,
        y: float,
        heading: str,
        lines: Sequence[str],
        *,
        width: float = COLUMN_MM,
        most: int = 1,
    ) -> None:
        self.write_at(x, y, width, heading, Style(8, SOFT, is_bold=True))
        for line in lines:
            if self.get_y() > HEIGHT_MM - FOOT_MM - most * 3.6:
                return
            self.write_at(x, self.get_y() + 0.3, width, line, Style(7.5, most_lines=most))

    def draw_foot(self, content: Content, made_at: datetime) -> None:
        """Draw the limitations at the bottom of the page."""
        top = HEIGHT_MM - FOOT_MM
        self.set_draw_color(*LINE)
        self.set_line_width(0.3)
        self.line(MARGIN_MM, top, MARGIN_MM + ROOM_MM, top)
        self.set_y(top + 2)
        self.write_line("Limits", Style(8, SOFT, is_bold=True))
        self.write_line(LIMITS, Style(7.5, most_lines=5))
        self.set_y(HEIGHT_MM - 10)
        self.write_line(f"Created {_time(made_at)} by {content.software}", Style(7, SOFT))


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
